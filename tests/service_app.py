"""The API in this process, on real servers, with its surveys worked off on demand: what the tests of the service share."""

from contextlib import contextmanager

import sqlalchemy as sa
from fastapi.testclient import TestClient

from ssr_nb.service import records, surveys
from ssr_nb.service.api import create_app
from ssr_nb.service.database import OPEN, ReportRow, SurveyRow, make_engine, transaction
from ssr_nb.service.keys import SCOPES, create_key
from ssr_nb.service.settings import ServiceSettings


class Service:
    "An app, its settings, and clients with keys of their own."
    def __init__(self, settings: ServiceSettings):
        self.settings, self.engine, self.app = settings, make_engine(settings.database_url), create_app(settings)

    def key(self, owner: str = "team", scopes=None, **options) -> str:
        with transaction(self.engine) as session: return create_key(session, "test", owner, scopes or [scope for scope in SCOPES if scope != "admin"], **options)[1]

    @contextmanager
    def client(self, owner: str = "team", scopes=None, key: str | None = None, **options):
        with TestClient(self.app, base_url="http://testserver", headers={"X-API-Key": key or self.key(owner, scopes, **options)}, raise_server_exceptions=False) as client: yield client

    def work_off(self) -> None:
        "Do what workers would do."
        with transaction(self.engine) as session: ids = session.scalars(sa.select(SurveyRow.id).where(SurveyRow.status.in_(OPEN))).all()
        for survey_id in ids:
            while handed := surveys.advance(self.engine, self.settings, survey_id):
                for stage, number in handed: surveys.work(self.engine, self.settings, survey_id, stage, number, "test")
        with transaction(self.engine) as session: reports = session.scalars(sa.select(ReportRow.survey_id).where(ReportRow.html.is_(None))).all()
        for survey_id in reports: records.make_report(self.engine, self.settings, survey_id)
