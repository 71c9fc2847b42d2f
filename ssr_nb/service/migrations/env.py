"Runs migrations: one process at a time, each in one transaction."

import sqlalchemy as sa
from alembic import context

from ssr_nb.service.database import Base

engine = sa.create_engine(context.config.attributes["url"], poolclass=sa.NullPool, connect_args={"connect_timeout": 5})
with engine.connect() as connection:
    context.configure(connection=connection, target_metadata=Base.metadata, compare_type=True)
    with context.begin_transaction():
        connection.execute(sa.text("SELECT pg_advisory_xact_lock(5577)"))  # whoever starts at the same time waits here and then finds nothing to do
        context.run_migrations()
