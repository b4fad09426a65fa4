"""Who may do what: projects, people, service accounts, sessions; what changed in the catalogue; who changed it."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import ARRAY, JSONB

revision: str = "0003"
down_revision: str | None = "0002"
branch_labels: str | None = None
depends_on: str | None = None

ROLES = "role IN ('owner', 'admin', 'member', 'viewer')"

CATALOGUE_ROWS = {
    "organizations": ("organizations", "id"),
    "teams": ("teams", "id"),
    "projects": ("projects", "id"),
    "keys": ("keys", "public_id"),
    "key_secrets": ("keys", "(SELECT public_id FROM keys WHERE keys.id = key_id)"),
    "backends": ("models", "name"),
    "models": ("models", "name"),
    "model_backends": ("models", "model"),
    "limits": ("limits", "owner_id"),
    "prices": ("prices", "model"),
    "webhooks": ("webhooks", "organization_id"),
}
"""For each table of the catalogue: which kind of row changed, and what finds it."""

AUDITED = {
    "organizations": "id",
    "teams": "id",
    "projects": "id",
    "keys": "id",
    "key_secrets": "key_id",
    "backends": "name",
    "models": "name",
    "model_backends": "model",
    "limits": "owner_id",
    "prices": "model",
    "webhooks": "organization_id",
    "people": "id",
    "memberships": "person_id",
    "service_accounts": "id",
    "sessions": "person_id",
}
"""For each audited table, the column that says whom or what a change is about."""


def upgrade() -> None:
    add_allow_lists()
    create_projects()
    create_people()
    create_service_accounts()
    extend_keys()
    create_idempotent_replies()
    create_catalogue_changes()
    create_audit_log()


def downgrade() -> None:
    for table in AUDITED:
        op.execute(f"DROP TRIGGER IF EXISTS audited ON {table}")
    op.drop_table("audit_log")
    for function in ("descant_audit()", "descant_redacted(jsonb)", "descant_append_only()"):
        op.execute(f"DROP FUNCTION {function}")
    drop_catalogue_changes()
    op.drop_table("idempotent_replies")
    for column in ("created_by", "allowed_adapters", "scopes", "role", "service_account_id", "project_id"):
        op.drop_column("keys", column)
    for table in ("service_accounts", "sessions", "memberships", "people", "projects"):
        op.drop_table(table)
    op.drop_column("teams", "allowed_adapters")
    op.drop_column("organizations", "allowed_adapters")
    op.drop_column("organizations", "allowed_models")


def add_allow_lists() -> None:
    op.add_column("organizations", sa.Column("allowed_models", ARRAY(sa.Text), comment="null allows every model"))
    for table in ("organizations", "teams"):
        op.add_column(
            table, sa.Column("allowed_adapters", ARRAY(sa.Text), comment="null: adapters are as the models are")
        )


def create_projects() -> None:
    op.create_table(
        "projects",
        id_column(),
        sa.Column("team_id", sa.Uuid, nullable=False),
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("allowed_models", ARRAY(sa.Text), comment="null inherits the team's list"),
        sa.Column("allowed_adapters", ARRAY(sa.Text), comment="null: adapters are as the models are"),
        created_at_column(),
        sa.PrimaryKeyConstraint("id", name="projects_pkey"),
        sa.ForeignKeyConstraint(["team_id"], ["teams.id"], name="projects_team_id_fkey"),
        sa.UniqueConstraint("team_id", "name", name="projects_team_id_name_key"),
    )


def create_people() -> None:
    op.create_table(
        "people",
        id_column(),
        sa.Column("email", sa.Text, nullable=False, comment="lower case"),
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("password_hash", sa.Text, comment="Argon2id; null: no password"),
        sa.Column("oidc_issuer", sa.Text),
        sa.Column("oidc_subject", sa.Text, comment="bound at the first sign-in"),
        sa.Column("disabled_at", sa.DateTime(timezone=True)),
        created_at_column(),
        sa.PrimaryKeyConstraint("id", name="people_pkey"),
        sa.UniqueConstraint("email", name="people_email_key"),
        sa.UniqueConstraint("oidc_issuer", "oidc_subject", name="people_oidc_issuer_oidc_subject_key"),
        sa.CheckConstraint("email = lower(email)", name="people_email_check"),
        sa.CheckConstraint("(oidc_issuer IS NULL) = (oidc_subject IS NULL)", name="people_oidc_check"),
    )
    op.create_table(
        "memberships",
        id_column(),
        sa.Column("person_id", sa.Uuid, nullable=False),
        sa.Column("organization_id", sa.Uuid, comment="null: the whole installation"),
        sa.Column("team_id", sa.Uuid, comment="null: the whole organization"),
        sa.Column("role", sa.Text, nullable=False),
        created_at_column(),
        sa.PrimaryKeyConstraint("id", name="memberships_pkey"),
        sa.ForeignKeyConstraint(["person_id"], ["people.id"], name="memberships_person_id_fkey", ondelete="CASCADE"),
        sa.ForeignKeyConstraint(["organization_id"], ["organizations.id"], name="memberships_organization_id_fkey"),
        sa.ForeignKeyConstraint(["team_id"], ["teams.id"], name="memberships_team_id_fkey"),
        sa.UniqueConstraint(
            "person_id",
            "organization_id",
            "team_id",
            name="memberships_person_id_organization_id_team_id_key",
            postgresql_nulls_not_distinct=True,
        ),
        sa.CheckConstraint(ROLES, name="memberships_role_check"),
        sa.CheckConstraint("team_id IS NULL OR organization_id IS NOT NULL", name="memberships_level_check"),
    )
    op.create_table(
        "sessions",
        id_column(),
        sa.Column("person_id", sa.Uuid, nullable=False),
        sa.Column("token_hash", sa.LargeBinary, nullable=False, comment="SHA-256 of a random token of 256 bits"),
        sa.Column("address", sa.Text, comment="where the person signed in from"),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=False),
        created_at_column(),
        sa.PrimaryKeyConstraint("id", name="sessions_pkey"),
        sa.ForeignKeyConstraint(["person_id"], ["people.id"], name="sessions_person_id_fkey", ondelete="CASCADE"),
        sa.UniqueConstraint("token_hash", name="sessions_token_hash_key"),
    )
    op.create_index("sessions_person_id_idx", "sessions", ["person_id"])


def create_service_accounts() -> None:
    op.create_table(
        "service_accounts",
        id_column(),
        sa.Column("organization_id", sa.Uuid, nullable=False),
        sa.Column("team_id", sa.Uuid, comment="null: the whole organization"),
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("role", sa.Text, nullable=False),
        sa.Column("disabled_at", sa.DateTime(timezone=True)),
        created_at_column(),
        sa.PrimaryKeyConstraint("id", name="service_accounts_pkey"),
        sa.ForeignKeyConstraint(
            ["organization_id"], ["organizations.id"], name="service_accounts_organization_id_fkey"
        ),
        sa.ForeignKeyConstraint(["team_id"], ["teams.id"], name="service_accounts_team_id_fkey"),
        sa.UniqueConstraint("organization_id", "name", name="service_accounts_organization_id_name_key"),
        sa.CheckConstraint(ROLES, name="service_accounts_role_check"),
    )


def extend_keys() -> None:
    op.add_column("keys", sa.Column("project_id", sa.Uuid))
    op.add_column("keys", sa.Column("service_account_id", sa.Uuid))
    op.add_column("keys", sa.Column("role", sa.Text, comment="what the key may administer; null: nothing"))
    op.add_column("keys", sa.Column("scopes", ARRAY(sa.Text), comment="null: every endpoint of /v1"))
    op.add_column("keys", sa.Column("allowed_adapters", ARRAY(sa.Text), comment="null: as the models are"))
    op.add_column("keys", sa.Column("created_by", sa.Text, comment="person:<id>, key:<id>, or null: the admin key"))
    op.create_foreign_key("keys_project_id_fkey", "keys", "projects", ["project_id"], ["id"])
    op.create_foreign_key("keys_service_account_id_fkey", "keys", "service_accounts", ["service_account_id"], ["id"])
    op.create_check_constraint("keys_role_check", "keys", ROLES)
    op.create_index("keys_project_id_idx", "keys", ["project_id"])
    op.create_index("keys_service_account_id_idx", "keys", ["service_account_id"])


def create_idempotent_replies() -> None:
    op.create_table(
        "idempotent_replies",
        sa.Column("actor", sa.Text, nullable=False),
        sa.Column("idempotency_key", sa.Text, nullable=False),
        sa.Column("request_hash", sa.LargeBinary, nullable=False),
        sa.Column("status", sa.SmallInteger, comment="null: under way"),
        sa.Column("sealed_body", sa.LargeBinary, comment="may hold a new key's text, so it is encrypted"),
        created_at_column(),
        sa.PrimaryKeyConstraint("actor", "idempotency_key", name="idempotent_replies_pkey"),
    )
    op.create_index("idempotent_replies_created_at_idx", "idempotent_replies", ["created_at"])


def create_catalogue_changes() -> None:
    op.create_table(
        "catalogue_changes",
        sa.Column("version", sa.BigInteger, nullable=False, autoincrement=False),
        sa.Column("kind", sa.Text, nullable=False),
        sa.Column("ids", ARRAY(sa.Text), comment="null: too many to tell, load everything"),
        sa.PrimaryKeyConstraint("version", name="catalogue_changes_pkey"),
    )
    # For tables that don't say which rows changed (and, below, for TRUNCATE): everything has to be read again.
    op.execute("""
        CREATE OR REPLACE FUNCTION descant_catalogue_changed() RETURNS trigger LANGUAGE plpgsql AS $$
        DECLARE new_version bigint;
        BEGIN
            UPDATE catalogue_version SET version = version + 1 RETURNING version INTO new_version;
            INSERT INTO catalogue_changes (version, kind) VALUES (new_version, 'everything');
            NOTIFY descant_catalogue;
            RETURN NULL;
        END $$
    """)
    # Arguments: the kind, and an expression over a changed row that names it. One version a statement, with its rows.
    op.execute("""
        CREATE FUNCTION descant_catalogue_rows_changed() RETURNS trigger LANGUAGE plpgsql AS $$
        DECLARE
            new_version bigint;
            changed_ids text[];
            seen text := CASE TG_OP WHEN 'INSERT' THEN 'SELECT * FROM new_rows'
                                    WHEN 'DELETE' THEN 'SELECT * FROM old_rows'
                                    ELSE 'SELECT * FROM new_rows UNION ALL SELECT * FROM old_rows' END;
        BEGIN
            EXECUTE format('SELECT array_agg(DISTINCT id) FROM (SELECT (%s)::text AS id FROM (%s) AS changed) AS named'
                           ' WHERE id IS NOT NULL', TG_ARGV[1], seen) INTO changed_ids;
            IF changed_ids IS NULL THEN
                RETURN NULL;
            END IF;
            UPDATE catalogue_version SET version = version + 1 RETURNING version INTO new_version;
            INSERT INTO catalogue_changes (version, kind, ids)
                VALUES (new_version, TG_ARGV[0], CASE WHEN cardinality(changed_ids) <= 1000 THEN changed_ids END);
            DELETE FROM catalogue_changes WHERE version <= new_version - 10000;
            NOTIFY descant_catalogue;
            RETURN NULL;
        END $$
    """)
    for table, (kind, row_id) in CATALOGUE_ROWS.items():
        op.execute(f"DROP TRIGGER IF EXISTS catalogue_changed ON {table}")
        for event, rows in (
            ("INSERT", "NEW TABLE AS new_rows"),
            ("UPDATE", "OLD TABLE AS old_rows NEW TABLE AS new_rows"),
            ("DELETE", "OLD TABLE AS old_rows"),
        ):
            op.execute(f"""
                CREATE TRIGGER catalogue_{event.lower()} AFTER {event} ON {table} REFERENCING {rows}
                FOR EACH STATEMENT EXECUTE FUNCTION descant_catalogue_rows_changed('{kind}', '{row_id}')
            """)
        op.execute(f"""
            CREATE TRIGGER catalogue_truncate AFTER TRUNCATE ON {table}
            FOR EACH STATEMENT EXECUTE FUNCTION descant_catalogue_changed()
        """)


def drop_catalogue_changes() -> None:
    for table in CATALOGUE_ROWS:
        for event in ("insert", "update", "delete", "truncate"):
            op.execute(f"DROP TRIGGER IF EXISTS catalogue_{event} ON {table}")
    op.execute("DROP FUNCTION descant_catalogue_rows_changed()")
    op.drop_table("catalogue_changes")
    op.execute("""
        CREATE OR REPLACE FUNCTION descant_catalogue_changed() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN
            UPDATE catalogue_version SET version = version + 1;
            NOTIFY descant_catalogue;
            RETURN NULL;
        END $$
    """)
    for table in CATALOGUE_ROWS.keys() - {"projects"}:
        op.execute(f"""
            CREATE TRIGGER catalogue_changed AFTER INSERT OR UPDATE OR DELETE OR TRUNCATE ON {table}
            FOR EACH STATEMENT EXECUTE FUNCTION descant_catalogue_changed()
        """)


def create_audit_log() -> None:
    create_audit_table()
    keep_audit_log_append_only()
    create_redaction()
    create_audit_trigger()
    for table, subject in AUDITED.items():
        op.execute(f"""
            CREATE TRIGGER audited AFTER INSERT OR UPDATE OR DELETE ON {table}
            FOR EACH ROW EXECUTE FUNCTION descant_audit('{subject}')
        """)


def create_audit_table() -> None:
    op.create_table(
        "audit_log",
        sa.Column("id", sa.BigInteger, sa.Identity(always=True), nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False, server_default=sa.func.clock_timestamp()),
        sa.Column("actor_kind", sa.Text, nullable=False, comment="admin_key, key, person, or database: by hand"),
        sa.Column("actor_id", sa.Text),
        sa.Column("actor_name", sa.Text, nullable=False),
        sa.Column("address", sa.Text),
        sa.Column("request", sa.Text, comment="method and path"),
        sa.Column("request_id", sa.Text),
        sa.Column("action", sa.Text, nullable=False, comment="insert, update or delete"),
        sa.Column("kind", sa.Text, nullable=False, comment="the table"),
        sa.Column("subject", sa.Text, comment="which row"),
        sa.Column("organization_id", sa.Uuid),
        sa.Column("team_id", sa.Uuid),
        sa.Column("changed", ARRAY(sa.Text), comment="the columns that an update changed"),
        sa.Column("before", JSONB(none_as_null=True)),
        sa.Column("after", JSONB(none_as_null=True)),
        sa.PrimaryKeyConstraint("id", name="audit_log_pkey"),
        comment="append-only: a trigger refuses whatever else; secrets are redacted",
    )
    op.create_index("audit_log_organization_id_id_idx", "audit_log", ["organization_id", "id"])


def keep_audit_log_append_only() -> None:
    op.execute("""
        CREATE FUNCTION descant_append_only() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN
            RAISE EXCEPTION '% is append-only', TG_TABLE_NAME USING ERRCODE = 'insufficient_privilege';
        END $$
    """)
    op.execute("""
        CREATE TRIGGER append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON audit_log
        FOR EACH STATEMENT EXECUTE FUNCTION descant_append_only()
    """)


def create_redaction() -> None:
    op.execute("""
        CREATE FUNCTION descant_redacted(fields jsonb) RETURNS jsonb LANGUAGE sql IMMUTABLE AS $$
            SELECT jsonb_object_agg(key, CASE
                WHEN value <> 'null' AND key ~ '(^sealed_|_hash$|_hmac$|secret$|password$|token$|salt$)'
                THEN '"***"'::jsonb ELSE value END) FROM jsonb_each(fields)
        $$
    """)


def create_audit_trigger() -> None:
    # The gateway says who acts in the setting descant.actor of its transaction; without it somebody works by hand.
    op.execute("""
        CREATE FUNCTION descant_audit() RETURNS trigger LANGUAGE plpgsql AS $$
        DECLARE
            actor jsonb := coalesce(nullif(current_setting('descant.actor', true), ''), '{}')::jsonb;
            before_row jsonb := CASE WHEN TG_OP <> 'INSERT' THEN to_jsonb(OLD) END;
            after_row jsonb := CASE WHEN TG_OP <> 'DELETE' THEN to_jsonb(NEW) END;
            shown jsonb := coalesce(after_row, before_row);
            its_team uuid := (shown->>'team_id')::uuid;
            its_organization uuid := (shown->>'organization_id')::uuid;
        BEGIN
            IF before_row = after_row THEN
                RETURN NULL;
            END IF;
            IF TG_TABLE_NAME = 'key_secrets' THEN
                SELECT team_id INTO its_team FROM keys WHERE id = (shown->>'key_id')::uuid;
            ELSIF TG_TABLE_NAME = 'teams' THEN
                its_team := (shown->>'id')::uuid;
            ELSIF TG_TABLE_NAME = 'organizations' THEN
                its_organization := (shown->>'id')::uuid;
            END IF;
            IF its_organization IS NULL AND its_team IS NOT NULL THEN
                SELECT organization_id INTO its_organization FROM teams WHERE id = its_team;
            END IF;
            INSERT INTO audit_log (actor_kind, actor_id, actor_name, address, request, request_id, action, kind,
                                   subject, organization_id, team_id, changed, before, after)
            VALUES (
                coalesce(actor->>'kind', 'database'), actor->>'id', coalesce(actor->>'name', session_user),
                actor->>'address', actor->>'request', actor->>'request_id',
                lower(TG_OP), TG_TABLE_NAME, shown->>TG_ARGV[0], its_organization, its_team,
                CASE WHEN TG_OP = 'UPDATE' THEN ARRAY(
                    SELECT key FROM jsonb_each(after_row) WHERE value IS DISTINCT FROM before_row->key ORDER BY key
                ) END,
                descant_redacted(before_row), descant_redacted(after_row)
            );
            RETURN NULL;
        END $$
    """)


def id_column() -> sa.Column:  # type: ignore[type-arg]
    return sa.Column("id", sa.Uuid, nullable=False, server_default=sa.func.gen_random_uuid())


def created_at_column() -> sa.Column:  # type: ignore[type-arg]
    return sa.Column("created_at", sa.DateTime(timezone=True), nullable=False, server_default=sa.func.now())
