#!/bin/sh
# Makes the two roles, brings the schema up to date, and grants: afterwards the services may begin. Running it again changes
# nothing, but for passwords that are others now.
#
# PGHOST, PGPORT, PGDATABASE, PGUSER, PGPASSWORD   where, and the administrator; a database that is absent is made
# MIGRATOR, MIGRATOR_PASSWORD                      who owns the schema and migrates it
# SERVICE, SERVICE_PASSWORD                        as whom the services connect
# DATABASE_URL                                     instead of all these: only migrate, as the user that it names
#
# Each password may lie in a file: PGPASSWORD_FILE and so on. Nothing secret is an argument, which all processes may see.
set -eu
cd "$(dirname -- "$0")"

# A migration that cannot get its locks gives up rather than hold up the traffic behind it.
migrate() {
    DATABASE_URL=$1 dbmate --wait --wait-timeout 60s --no-dump-schema --migrations-dir migrations up
}

if [ -n "${DATABASE_URL:-}" ]; then
    migrate "$DATABASE_URL"
    exit
fi

# secret NAME: what the variable says, or the file that NAME_FILE names.
secret() {
    eval "file=\${$1_FILE:-}"
    if [ -n "$file" ]; then cat -- "$file"; else eval "printf %s \"\${$1:-}\""; fi
}

# settings NAME=VALUE...: what a session of libpq shall begin with.
settings() {
    for setting in "$@"; do
        printf -- '-c cpe.%s ' "$(printf %s "$setting" | sed 's/[\\ ]/\\&/g')"
    done
}

sql() { psql --no-psqlrc --quiet --set ON_ERROR_STOP=1 "$@"; }

PGPASSWORD=$(secret PGPASSWORD)
migrator_password=$(secret MIGRATOR_PASSWORD)
service_password=$(secret SERVICE_PASSWORD)
export PGPASSWORD PGOPTIONS PGUSER

PGOPTIONS=''
sql --set name="$PGDATABASE" --dbname postgres <<'END'
SELECT format('CREATE DATABASE %I', :'name') WHERE NOT EXISTS (SELECT FROM pg_database WHERE datname = :'name') \gexec
END
PGOPTIONS=$(settings "migrator=$MIGRATOR" "migrator_password=$migrator_password" \
    "service=$SERVICE" "service_password=$service_password")
sql --single-transaction --file roles.sql

PGUSER=$MIGRATOR PGPASSWORD=$migrator_password PGOPTIONS=''
migrate "postgres://$PGHOST:$PGPORT/$PGDATABASE?lock_timeout=10s"
PGOPTIONS=$(settings "service=$SERVICE")
sql --single-transaction --file grants.sql
