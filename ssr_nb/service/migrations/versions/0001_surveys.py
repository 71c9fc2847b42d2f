"Surveys, what was asked, what was answered, and who may ask."

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import ARRAY, BYTEA, DOUBLE_PRECISION, JSONB

revision = "0001"
down_revision = None

TIME = sa.DateTime(timezone=True)


def upgrade():
    op.create_table(
        "surveys",
        sa.Column("id", sa.Text, nullable=False),
        sa.Column("owner", sa.Text, nullable=False),
        sa.Column("key_id", sa.Text),
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("status", sa.Text, nullable=False),
        sa.Column("request", JSONB, nullable=False),
        sa.Column("specification", sa.JSON, nullable=False),
        sa.Column("queue", sa.Text, nullable=False),
        sa.Column("total", sa.Integer, nullable=False),
        sa.Column("stage", sa.Integer, nullable=False),
        sa.Column("max_cost_usd", DOUBLE_PRECISION),
        sa.Column("cost_usd", DOUBLE_PRECISION),
        sa.Column("elicitation_hash", sa.Text, nullable=False),
        sa.Column("fingerprint", sa.Text, nullable=False),
        sa.Column("manifest", sa.JSON),
        sa.Column("error", sa.Text),
        sa.Column("metadata", JSONB, nullable=False),
        sa.Column("idempotency_key", sa.Text),
        sa.Column("request_hash", sa.Text),
        sa.Column("possible_usd", DOUBLE_PRECISION, nullable=False),
        sa.Column("request_id", sa.Text),
        sa.Column("created_at", TIME, nullable=False),
        sa.Column("started_at", TIME),
        sa.Column("finished_at", TIME),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("owner", "idempotency_key", name="surveys_idempotency"),
    )
    op.create_index("surveys_by_owner", "surveys", ["owner", "created_at", "id"])
    op.create_index("surveys_by_status", "surveys", ["status", "created_at"])
    op.create_index("surveys_by_time", "surveys", ["created_at", "id"])
    op.create_index("surveys_by_key", "surveys", ["key_id", "created_at"])
    op.create_table(
        "api_keys",
        sa.Column("id", sa.Text, nullable=False),
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("owner", sa.Text, nullable=False),
        sa.Column("hash", sa.Text, nullable=False),
        sa.Column("scopes", ARRAY(sa.Text), nullable=False),
        sa.Column("budget_usd", DOUBLE_PRECISION),
        sa.Column("created_at", TIME, nullable=False),
        sa.Column("expires_at", TIME),
        sa.Column("revoked_at", TIME),
        sa.Column("last_used_at", TIME),
        sa.Column("replaced_by", sa.Text),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_table(
        "audit_log",
        sa.Column("id", sa.BigInteger, sa.Identity(), nullable=False),
        sa.Column("created_at", TIME, nullable=False),
        sa.Column("request_id", sa.Text, nullable=False),
        sa.Column("key_id", sa.Text),
        sa.Column("owner", sa.Text),
        sa.Column("method", sa.Text, nullable=False),
        sa.Column("path", sa.Text, nullable=False),
        sa.Column("status", sa.Integer, nullable=False),
        sa.Column("seconds", DOUBLE_PRECISION, nullable=False),
        sa.Column("client", sa.Text),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index("audit_log_by_time", "audit_log", ["created_at"])
    op.create_table(
        "embeddings",
        sa.Column("key", sa.Text, nullable=False),
        sa.Column("vector", BYTEA, nullable=False),
        sa.Column("created_at", TIME, nullable=False),
        sa.PrimaryKeyConstraint("key"),
    )
    op.create_table(
        "answers",
        sa.Column("survey_id", sa.Text, nullable=False),
        sa.Column("answer_id", sa.BigInteger, nullable=False),
        sa.Column("concept", sa.Text),
        sa.Column("construct", sa.Text),
        sa.Column("method", sa.Text),
        sa.Column("llm_model", sa.Text),
        sa.Column("wording", sa.BigInteger),
        sa.Column("respondent", sa.BigInteger),
        sa.Column("sample", sa.BigInteger),
        sa.Column("text", sa.Text),
        sa.Column("status", sa.Text),
        sa.Column("cause", sa.Text),
        sa.Column("call_key", sa.Text),
        sa.Column("replaced", sa.BigInteger),
        sa.Column("rating_reply", sa.Text),
        sa.Column("rating_call_key", sa.Text),
        sa.Column("why", sa.Text),
        sa.Column("why_call_key", sa.Text),
        sa.ForeignKeyConstraint(["survey_id"], ["surveys.id"], ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("survey_id", "answer_id"),
    )
    op.create_table(
        "chunks",
        sa.Column("survey_id", sa.Text, nullable=False),
        sa.Column("stage", sa.Integer, nullable=False),
        sa.Column("number", sa.Integer, nullable=False),
        sa.Column("first", sa.Integer, nullable=False),
        sa.Column("last", sa.Integer, nullable=False),
        sa.Column("status", sa.Text, nullable=False),
        sa.Column("attempts", sa.Integer, nullable=False),
        sa.Column("lease_until", TIME),
        sa.Column("worker", sa.Text),
        sa.ForeignKeyConstraint(["survey_id"], ["surveys.id"], ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("survey_id", "stage", "number"),
    )
    op.create_index("chunks_to_do", "chunks", ["status", "lease_until"], postgresql_where=sa.text("status <> 'done'"))
    op.create_table(
        "concepts",
        sa.Column("survey_id", sa.Text, nullable=False),
        sa.Column("position", sa.Integer, nullable=False),
        sa.Column("concept", sa.Text, nullable=False),
        sa.Column("description", sa.Text, nullable=False),
        sa.Column("price", sa.Text),
        sa.Column("image", sa.Text),
        sa.Column("image_data", BYTEA),
        sa.ForeignKeyConstraint(["survey_id"], ["surveys.id"], ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("survey_id", "position"),
    )
    op.create_table(
        "findings",
        sa.Column("survey_id", sa.Text, nullable=False),
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("flag", sa.Boolean),
        sa.Column("what", sa.Text, nullable=False),
        sa.Column("value", DOUBLE_PRECISION),
        sa.Column("low", DOUBLE_PRECISION),
        sa.Column("high", DOUBLE_PRECISION),
        sa.Column("mend", sa.Text),
        sa.ForeignKeyConstraint(["survey_id"], ["surveys.id"], ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("survey_id", "name", "what"),
    )
    op.create_table(
        "llm_requests",
        sa.Column("survey_id", sa.Text, nullable=False),
        sa.Column("key", sa.Text, nullable=False),
        sa.Column("status", sa.Text, nullable=False),
        sa.Column("cause", sa.Text),
        sa.Column("provider", sa.Text, nullable=False),
        sa.Column("llm_model", sa.Text, nullable=False),
        sa.Column("request", sa.Text, nullable=False),
        sa.Column("text", sa.Text),
        sa.Column("finish_reason", sa.Text),
        sa.Column("prompt_tokens", sa.Integer, nullable=False),
        sa.Column("completion_tokens", sa.Integer, nullable=False),
        sa.Column("seconds", DOUBLE_PRECISION, nullable=False),
        sa.Column("attempts", sa.Integer, nullable=False),
        sa.Column("cached_tokens", sa.Integer, nullable=False),
        sa.Column("written_tokens", sa.Integer, nullable=False),
        sa.Column("reasoning_tokens", sa.Integer, nullable=False),
        sa.Column("served_model", sa.Text, nullable=False),
        sa.Column("mode", sa.Text, nullable=False),
        sa.Column("counted", sa.Boolean, nullable=False),
        sa.Column("cost", DOUBLE_PRECISION),
        sa.Column("cache_key", sa.Text),
        sa.Column("created_at", TIME, nullable=False),
        sa.ForeignKeyConstraint(["survey_id"], ["surveys.id"], ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("survey_id", "key"),
    )
    op.create_index("llm_requests_by_time", "llm_requests", ["created_at"])
    op.create_index("llm_requests_cache", "llm_requests", ["cache_key"], postgresql_where=sa.text("status = 'success'"))
    op.create_table(
        "ratings",
        sa.Column("survey_id", sa.Text, nullable=False),
        sa.Column("answer_id", sa.BigInteger, nullable=False),
        sa.Column("mean", DOUBLE_PRECISION),
        sa.Column("peakedness", DOUBLE_PRECISION),
        sa.Column("pmf", ARRAY(DOUBLE_PRECISION)),
        sa.Column("reference_sets", ARRAY(sa.Text)),
        sa.Column("similarities", ARRAY(DOUBLE_PRECISION, dimensions=2)),
        sa.ForeignKeyConstraint(["survey_id"], ["surveys.id"], ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("survey_id", "answer_id"),
    )
    op.create_table(
        "respondents",
        sa.Column("survey_id", sa.Text, nullable=False),
        sa.Column("respondent", sa.Integer, nullable=False),
        sa.Column("weight", DOUBLE_PRECISION, nullable=False),
        sa.Column("attributes", sa.JSON, nullable=False),
        sa.ForeignKeyConstraint(["survey_id"], ["surveys.id"], ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("survey_id", "respondent"),
    )
    op.create_table(
        "summaries",
        sa.Column("survey_id", sa.Text, nullable=False),
        sa.Column("concept", sa.Text, nullable=False),
        sa.Column("construct", sa.Text, nullable=False),
        sa.Column("method", sa.Text, nullable=False),
        sa.Column("llm_model", sa.Text),
        sa.Column("rank", sa.BigInteger),
        sa.Column("mean", DOUBLE_PRECISION),
        sa.Column("mean_low", DOUBLE_PRECISION),
        sa.Column("mean_high", DOUBLE_PRECISION),
        sa.Column("top_2_box", DOUBLE_PRECISION),
        sa.Column("top_2_box_low", DOUBLE_PRECISION),
        sa.Column("top_2_box_high", DOUBLE_PRECISION),
        sa.Column("top_box", DOUBLE_PRECISION),
        sa.Column("pmf", ARRAY(DOUBLE_PRECISION)),
        sa.Column("n_respondents", sa.BigInteger),
        sa.Column("n_answers", sa.BigInteger),
        sa.Column("n_ok", sa.BigInteger),
        sa.Column("n_uninformative", sa.BigInteger),
        sa.Column("n_numeric", sa.BigInteger),
        sa.Column("n_refusal", sa.BigInteger),
        sa.Column("n_empty", sa.BigInteger),
        sa.Column("n_truncated", sa.BigInteger),
        sa.Column("n_filtered", sa.BigInteger),
        sa.Column("n_error", sa.BigInteger),
        sa.ForeignKeyConstraint(["survey_id"], ["surveys.id"], ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("survey_id", "concept", "construct", "method"),
    )


def downgrade():
    for table in ("summaries", "respondents", "ratings", "llm_requests", "findings", "concepts", "chunks", "answers", "embeddings", "audit_log", "api_keys", "surveys"): op.drop_table(table)
