"""Prices that a replica of before 0005 writes while 0005 is rolled out: they become versions like any other."""

from alembic import op

revision: str = "0008"
down_revision: str | None = "0007"
branch_labels: str | None = None
depends_on: str | None = None


def upgrade() -> None:
    # Nobody else writes to `prices` any more. A row that goes with its model says nothing about a price.
    op.execute("""
        CREATE FUNCTION descant_price_of_old_replica() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN
            IF TG_OP <> 'DELETE' THEN
                INSERT INTO price_versions (model, valid_from, input, cached, output)
                VALUES (NEW.model, clock_timestamp(), NEW.input, NEW.cached, NEW.output);
            ELSIF EXISTS (SELECT FROM models WHERE name = OLD.model) THEN
                INSERT INTO price_versions (model, valid_from) VALUES (OLD.model, clock_timestamp());
            END IF;
            RETURN NULL;
        END $$
    """)
    op.execute("""
        CREATE TRIGGER becomes_version AFTER INSERT OR UPDATE OR DELETE ON prices
        FOR EACH ROW EXECUTE FUNCTION descant_price_of_old_replica()
    """)


def downgrade() -> None:
    op.execute("DROP TRIGGER becomes_version ON prices")
    op.execute("DROP FUNCTION descant_price_of_old_replica()")
