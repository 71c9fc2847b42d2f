"Schedules, posted reference sets, kept reports, and deletion that keeps the costs."

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0002"
down_revision = "0001"

TIME = sa.DateTime(timezone=True)


def upgrade():
    op.create_table(
        "schedules",
        sa.Column("id", sa.Text, nullable=False),
        sa.Column("owner", sa.Text, nullable=False),
        sa.Column("key_id", sa.Text),
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("cron", sa.Text, nullable=False),
        sa.Column("timezone", sa.Text, nullable=False),
        sa.Column("survey", JSONB),
        sa.Column("notebook", sa.Text),
        sa.Column("parameters", JSONB, nullable=False),
        sa.Column("paused", sa.Boolean, nullable=False),
        sa.Column("until", TIME, nullable=False),
        sa.Column("created_at", TIME, nullable=False),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("owner", "name", name="schedules_name"),
    )
    op.create_table(
        "schedule_runs",
        sa.Column("schedule_id", sa.Text, nullable=False),
        sa.Column("due_at", TIME, nullable=False),
        sa.Column("status", sa.Text, nullable=False),
        sa.Column("survey_id", sa.Text),
        sa.Column("run_id", sa.Text),
        sa.Column("error", sa.Text),
        sa.Column("lease_until", TIME),
        sa.Column("created_at", TIME, nullable=False),
        sa.ForeignKeyConstraint(["schedule_id"], ["schedules.id"], ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("schedule_id", "due_at"),
    )
    op.create_table(
        "reference_sets",
        sa.Column("owner", sa.Text, nullable=False),
        sa.Column("hash", sa.Text, nullable=False),
        sa.Column("construct", sa.Text, nullable=False),
        sa.Column("content", sa.JSON, nullable=False),
        sa.Column("gate", JSONB, nullable=False),
        sa.Column("created_at", TIME, nullable=False),
        sa.PrimaryKeyConstraint("owner", "hash"),
    )
    op.create_table(
        "reports",
        sa.Column("survey_id", sa.Text, nullable=False),
        sa.Column("html", sa.Text),
        sa.Column("error", sa.Text),
        sa.Column("asked_at", TIME, nullable=False),
        sa.ForeignKeyConstraint(["survey_id"], ["surveys.id"], ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("survey_id"),
    )
    op.add_column("surveys", sa.Column("schedule_id", sa.Text))
    op.add_column("surveys", sa.Column("due_at", TIME))
    op.add_column("surveys", sa.Column("deleted_at", TIME))
    op.create_foreign_key("surveys_schedule", "surveys", "schedules", ["schedule_id"], ["id"], ondelete="SET NULL")
    op.create_unique_constraint("surveys_due", "surveys", ["schedule_id", "due_at"])


def downgrade():
    for column in ("deleted_at", "due_at", "schedule_id"): op.drop_column("surveys", column)
    for table in ("reports", "reference_sets", "schedule_runs", "schedules"): op.drop_table(table)
