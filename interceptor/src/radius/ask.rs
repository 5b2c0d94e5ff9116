//! What is asked of a PostgreSQL server: plans, counts, and what depends on what.
//!
//! Every question is a transaction of its own that may only read and doesn't wait. The server's catalogues are asked
//! with nothing but `pg_catalog` in the search path; an agent's conditions mean what they mean in its session.

use std::error::Error as _;

use bytes::BytesMut;
use interceptor_core::{
    operation::{
        Operation, Parameter, ParameterFormat,
        radius::{BlastRadius, Change, Estimate, Impact, Rows},
    },
    protocol::postgres::radius::{Query, Question, Target, Which},
};
use serde_json::Value;
use tokio_postgres::{
    Client, Error, Row,
    types::{Format, IsNull, Kind, ToSql, Type, to_sql_checked},
};

use super::{Scene, connect::Connected, is_by_path};

/// Rows that are counted at the most.
const COUNTED_MAX: u64 = 1_000_000;

/// Things that go with another which are listed, of each kind.
const DEPENDENTS_MAX: usize = 32;

/// How a transaction begins. Nothing is waited for that somebody else holds, and nothing takes long.
const BEGIN: &str = "BEGIN READ ONLY; SET LOCAL lock_timeout = '500ms'; SET LOCAL statement_timeout = '3s'; SET LOCAL client_min_messages = error; SET LOCAL search_path = pg_catalog";

/// What names without a schema mean in the agent's session: its role's setting in this database, the role's, the
/// database's, everybody's, or the server's.
const PATH: &str = "SELECT coalesce((\
    SELECT substr(c, 13) FROM pg_db_role_setting s, unnest(s.setconfig) c \
    WHERE c LIKE 'search_path=%' \
    AND setdatabase IN (0, (SELECT oid FROM pg_database WHERE datname = current_database())) \
    AND setrole IN (0, coalesce((SELECT oid FROM pg_roles WHERE rolname = $1), 0)) \
    ORDER BY setrole = 0, setdatabase = 0 LIMIT 1), \
    (SELECT reset_val FROM pg_settings WHERE name = 'search_path'))";

/// What stands behind a name, by the search path.
const RESOLVE: &str = "SELECT to_regclass($1)::oid";

/// What a relation is called, how many rows it has and how much room it takes; partitions count for their table.
const RELATION: &str = "SELECT n.nspname::text, c.relname::text, r.rows, r.bytes FROM pg_class c \
    JOIN pg_namespace n ON n.oid = c.relnamespace \
    CROSS JOIN LATERAL (SELECT sum(nullif(p.reltuples, -1))::bigint AS rows, \
        sum(pg_total_relation_size(p.oid))::bigint AS bytes FROM pg_class p \
        WHERE p.oid IN (SELECT c.oid UNION ALL SELECT relid::oid FROM pg_partition_tree(c.oid) WHERE isleaf) \
        AND p.relkind IN ('r', 'm', 't', 'i', 'S')) r \
    WHERE c.oid = $1";

/// All of a schema: how many relations, their rows and their room.
const SCHEMA: &str = "SELECT count(*) FILTER (WHERE c.relkind IN ('r', 'p', 'm', 'v', 'f')), \
    sum(nullif(c.reltuples, -1)) FILTER (WHERE c.relkind IN ('r', 'm'))::bigint, \
    sum(pg_total_relation_size(c.oid)) FILTER (WHERE c.relkind IN ('r', 'm'))::bigint \
    FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE n.nspname = $1";

/// Foreign keys on a relation, on what is deleted with it, and so on: what refers to it, by which key, and what that
/// does where a row that is referred to goes. With `$2` whatever refers to it counts, as TRUNCATE … CASCADE has it.
const REFERENCES: &str = "WITH RECURSIVE hit AS (\
    SELECT c.conrelid, c.conname::text AS key, c.confdeltype::text AS action, 1 AS depth FROM pg_constraint c \
    WHERE c.confrelid = $1 AND c.contype = 'f' AND c.conparentid = 0 \
    UNION SELECT c.conrelid, c.conname::text, c.confdeltype::text, hit.depth + 1 FROM pg_constraint c \
    JOIN hit ON c.confrelid = hit.conrelid AND (hit.action = 'c' OR $2) \
    WHERE c.contype = 'f' AND c.conparentid = 0 AND hit.depth < 8) \
    SELECT DISTINCT ON (conrelid, key) conrelid::oid, key, action FROM hit WHERE conrelid <> $1 \
    ORDER BY conrelid, key, depth LIMIT 33";

/// Views that are made of a relation.
const VIEWS: &str = "SELECT DISTINCT r.ev_class FROM pg_depend d JOIN pg_rewrite r ON r.oid = d.objid \
    WHERE d.classid = 'pg_rewrite'::regclass AND d.refclassid = 'pg_class'::regclass \
    AND d.refobjid = $1 AND r.ev_class <> $1 ORDER BY 1 LIMIT 33";

/// Triggers of a relation that fire on one of the events in `$2`, a mask of `pg_trigger.tgtype`.
const TRIGGERS: &str = "SELECT tgname::text FROM pg_trigger \
    WHERE tgrelid = $1 AND NOT tgisinternal AND tgenabled <> 'D' AND (tgtype & $2) <> 0 ORDER BY 1 LIMIT 33";

/// Asks about one operation's questions.
pub(super) struct Asker<'a> {
    client: &'a Client,
    parameters: &'a [Parameter],
    estimate: Estimate,
    /// What names without a schema mean; or why that can't be told.
    path: Result<String, &'static str>,
}

impl<'a> Asker<'a> {
    /// For the operations of the session in `scene`.
    pub(super) async fn new(
        server: &'a Connected,
        scene: &Scene,
        operation: &'a Operation,
        estimate: Estimate,
    ) -> Result<Self, Error> {
        let client = &server.client;
        let path = if scene.is_role_changed() {
            Err(
                "names without a schema may mean something else in its session, which has changed more than rows; a statement that says `schema.table` can be asked about",
            )
        } else {
            let path = match scene.search_path() {
                Some(path) => path.to_owned(),
                None => {
                    let parameters: Typed<'_> = &[(&scene.role(), Type::TEXT)];
                    let row = transaction(client, PATH, parameters).await?;
                    row.first()
                        .map_or(Ok(None), |row| row.try_get(0))?
                        .unwrap_or_default()
                }
            };
            let user = scene.role().replace('"', "\"\"");
            let path = path.replace("\"$user\"", &format!("\"{user}\""));
            if path.contains("pg_catalog") {
                Err(
                    "its search path has `pg_catalog` behind others, so that even `=` may mean something else",
                )
            } else {
                Ok(path)
            }
        };
        Ok(Self {
            client,
            parameters: &operation.parameters,
            estimate,
            path,
        })
    }

    /// Asks `question`, and adds what is answered to `radius`.
    pub(super) async fn ask(&mut self, question: &Question, radius: &mut BlastRadius) {
        if let Err(why) = self.try_ask(question, radius).await {
            let what = match &question.target {
                Target::Result => String::new(),
                Target::Relation(name) => format!("{}: ", name.quoted()),
                Target::Schema(name) => format!("schema {name}: "),
            };
            let why = format!("statement {}: {what}{why}", question.statement);
            radius.unknown.push(why.into());
        }
    }

    async fn try_ask(&self, question: &Question, radius: &mut BlastRadius) -> Result<(), String> {
        if is_by_path(question) {
            self.path.as_ref().map_err(|why| (*why).to_owned())?;
        }
        let failed = |error: Error| said(&error);
        let mut impact = Impact {
            statement: question.statement,
            change: question.change,
            target: "".into(),
            rows: None,
            of: None,
            bytes: None,
            through: None,
        };
        let relation = match &question.target {
            Target::Result => None,
            Target::Schema(name) => {
                radius
                    .impacts
                    .push(self.schema(name, impact).await.map_err(failed)?);
                return Ok(());
            }
            Target::Relation(name) => {
                let found = self.resolve(&name.quoted()).await.map_err(failed)?;
                match found {
                    Some(oid) => {
                        self.describe(oid, &mut impact).await.map_err(failed)?;
                        Some(oid)
                    }
                    // What is about to be made isn't there yet.
                    None if question.change == Change::Adds => {
                        impact.target = match &name.schema {
                            Some(schema) => format!("{schema}.{}", name.relation).into(),
                            None => name.relation.clone(),
                        };
                        None
                    }
                    None => return Err("there is no such relation".to_owned()),
                }
            }
        };
        let (rows, why) = match &question.rows {
            Which::Unknown | Which::Whole => (None, None),
            Which::Number(number) => (Some(Rows::Counted(*number)), None),
            Which::Query(query) => self.rows(query).await,
        };
        impact.rows = rows;
        radius.impacts.push(impact);
        if let Some(oid) = relation {
            self.dependents(question, oid, radius)
                .await
                .map_err(failed)?;
        }
        why.map_or(Ok(()), Err)
    }

    /// How many rows `query` gives, and what about that can't be told.
    async fn rows(&self, query: &Query) -> (Option<Rows>, Option<String>) {
        let planned = match self.planned(query).await {
            Ok(planned) => planned.map(Rows::Planned),
            Err(error) => return (None, Some(said(&error))),
        };
        if self.estimate == Estimate::Plan {
            return (planned, None);
        }
        match self.counted(query).await {
            Ok(counted) => (Some(counted), None),
            Err(error) => {
                let why = format!("its rows weren't counted, only planned: {}", said(&error));
                (planned, Some(why))
            }
        }
    }

    async fn planned(&self, query: &Query) -> Result<Option<u64>, Error> {
        let sql = format!("EXPLAIN (FORMAT JSON) {}", query.sql);
        let rows = self.of_the_agent(&sql, query).await?;
        let plan: Option<Value> = rows.first().map_or(Ok(None), |row| row.try_get(0))?;
        let rows = plan
            .as_ref()
            .and_then(|plan| plan.pointer("/0/Plan/Plan Rows"));
        Ok(rows.and_then(Value::as_u64))
    }

    async fn counted(&self, query: &Query) -> Result<Rows, Error> {
        let sql = format!(
            "SELECT pg_catalog.count(*) FROM (SELECT 1 FROM ({}) AS a LIMIT {}) AS b",
            query.sql,
            COUNTED_MAX + 1
        );
        let rows = self.of_the_agent(&sql, query).await?;
        let count: i64 = rows.first().map_or(Ok(0), |row| row.try_get(0))?;
        Ok(match u64::try_from(count).unwrap_or_default() {
            count @ ..=COUNTED_MAX => Rows::Counted(count),
            _ => Rows::MoreThan(COUNTED_MAX),
        })
    }

    /// Asks `sql`, in which names mean what they mean in the agent's session.
    async fn of_the_agent(&self, sql: &str, query: &Query) -> Result<Vec<Row>, Error> {
        let values: Vec<(Bound<'_>, Type)> = query
            .parameters
            .iter()
            .filter_map(|index| self.parameters.get(*index))
            .map(|parameter| (Bound(parameter), by_oid(parameter.type_oid)))
            .collect();
        let parameters: Vec<(&(dyn ToSql + Sync), Type)> = values
            .iter()
            .map(|(bound, oid)| (bound as &(dyn ToSql + Sync), oid.clone()))
            .collect();
        within(self.client, async {
            self.follow_path().await?;
            self.client.query_typed(sql, &parameters).await
        })
        .await
    }

    /// Has names without a schema mean what they mean in the agent's session, for the rest of a transaction.
    async fn follow_path(&self) -> Result<(), Error> {
        let path = self.path.as_deref().unwrap_or("pg_catalog");
        let sql = "SELECT pg_catalog.set_config('search_path', $1, true)";
        self.client
            .query_typed(sql, &[(&path, Type::TEXT)])
            .await
            .map(drop)
    }

    async fn resolve(&self, name: &str) -> Result<Option<u32>, Error> {
        within(self.client, async {
            self.follow_path().await?;
            let sql = RESOLVE.replace("to_regclass", "pg_catalog.to_regclass");
            let rows = self
                .client
                .query_typed(&sql, &[(&name, Type::TEXT)])
                .await?;
            rows.first().map_or(Ok(None), |row| row.try_get(0))
        })
        .await
    }

    /// What the relation is, its size included.
    async fn describe(&self, oid: u32, impact: &mut Impact) -> Result<(), Error> {
        let rows = transaction(self.client, RELATION, &[(&oid, Type::OID)]).await?;
        if let Some(row) = rows.first() {
            let (schema, relation): (&str, &str) = (row.try_get(0)?, row.try_get(1)?);
            impact.target = format!("{schema}.{relation}").into();
            impact.of = positive(row.try_get(2)?);
            impact.bytes = positive(row.try_get(3)?);
        }
        Ok(())
    }

    async fn schema(&self, name: &str, mut impact: Impact) -> Result<Impact, Error> {
        let rows = transaction(self.client, SCHEMA, &[(&name, Type::TEXT)]).await?;
        if let Some(row) = rows.first() {
            let relations: i64 = row.try_get(0)?;
            impact.target = format!("schema {name} with {relations} tables and views").into();
            impact.of = positive(row.try_get(1)?);
            impact.bytes = positive(row.try_get(2)?);
        }
        Ok(impact)
    }

    /// What is touched because `question` touches the relation `oid`.
    async fn dependents(
        &self,
        question: &Question,
        oid: u32,
        radius: &mut BlastRadius,
    ) -> Result<(), Error> {
        let also = |change, through: String| Impact {
            statement: question.statement,
            change,
            target: "".into(),
            rows: None,
            of: None,
            bytes: None,
            through: Some(through.into()),
        };
        let mut found: Vec<(u32, Impact)> = Vec::new();
        let is_gone = matches!(question.change, Change::Empties | Change::Drops);
        if is_gone || question.change == Change::Deletes {
            let everything = question.change == Change::Empties && question.cascade;
            let parameters: Typed<'_> = &[(&oid, Type::OID), (&everything, Type::BOOL)];
            for row in transaction(self.client, REFERENCES, parameters).await? {
                let (other, key, action): (u32, &str, &str) =
                    (row.try_get(0)?, row.try_get(1)?, row.try_get(2)?);
                let change = match (question.change, question.cascade, action) {
                    (Change::Empties, true, _) => Change::Empties,
                    (Change::Drops, true, _) => Change::Alters,
                    (Change::Empties | Change::Drops, false, _) => Change::MayPrevent,
                    (_, _, "c") => Change::Deletes,
                    (_, _, "n" | "d") => Change::Changes,
                    _ => Change::MayPrevent,
                };
                found.push((other, also(change, format!("the foreign key {key}"))));
            }
        }
        if question.change == Change::Drops {
            for row in transaction(self.client, VIEWS, &[(&oid, Type::OID)]).await? {
                let change = if question.cascade {
                    Change::Drops
                } else {
                    Change::MayPrevent
                };
                found.push((row.try_get(0)?, also(change, "its definition".to_owned())));
            }
        }
        let beyond = found.len() > DEPENDENTS_MAX;
        for (other, mut impact) in found.into_iter().take(DEPENDENTS_MAX) {
            self.describe(other, &mut impact).await?;
            radius.impacts.push(impact);
        }
        if beyond {
            radius
                .unknown
                .push(format!("more than {DEPENDENTS_MAX} others depend on it").into());
        }
        let events = match question.change {
            Change::Adds => trigger::INSERT,
            Change::Changes => trigger::UPDATE,
            Change::Deletes => trigger::DELETE,
            Change::Empties => trigger::TRUNCATE,
            _ => return Ok(()),
        };
        let parameters: Typed<'_> = &[(&oid, Type::OID), (&events, Type::INT4)];
        for row in transaction(self.client, TRIGGERS, parameters).await? {
            let mut impact = also(Change::Triggers, row.try_get(0)?);
            self.describe(oid, &mut impact).await?;
            (impact.of, impact.bytes) = (None, None);
            radius.impacts.push(impact);
        }
        Ok(())
    }
}

/// Bits of `pg_trigger.tgtype` (PostgreSQL's `catalog/pg_trigger.h`).
mod trigger {
    pub(super) const INSERT: i32 = 1 << 2;
    pub(super) const DELETE: i32 = 1 << 3;
    pub(super) const UPDATE: i32 = 1 << 4;
    pub(super) const TRUNCATE: i32 = 1 << 5;
}

type Typed<'a> = &'a [(&'a (dyn ToSql + Sync), Type)];

/// Asks `sql` in a transaction of its own.
async fn transaction(client: &Client, sql: &str, parameters: Typed<'_>) -> Result<Vec<Row>, Error> {
    within(client, client.query_typed(sql, parameters)).await
}

/// Does `asking` in a transaction that may only read.
async fn within<T>(
    client: &Client,
    asking: impl Future<Output = Result<T, Error>>,
) -> Result<T, Error> {
    client.batch_execute(BEGIN).await?;
    let asked = asking.await;
    let ended = client.batch_execute("ROLLBACK").await;
    asked.and_then(|asked| ended.map(|()| asked))
}

/// What went wrong, in the server's words where they are its.
pub(super) fn said(error: &Error) -> String {
    match (error.as_db_error(), error.source()) {
        (Some(said), _) => format!("the server says: {}", said.message()),
        (None, Some(source)) => format!("{error}: {source}"),
        (None, None) => error.to_string(),
    }
}

fn positive(number: Option<i64>) -> Option<u64> {
    number.and_then(|number| u64::try_from(number).ok())
}

/// The type of that OID; none says that the server finds it out.
fn by_oid(oid: u32) -> Type {
    Type::new(String::new(), oid, Kind::Simple, String::new())
}

/// A value as the agent bound it.
#[derive(Debug)]
struct Bound<'a>(&'a Parameter);

impl ToSql for Bound<'_> {
    fn to_sql(
        &self,
        _: &Type,
        out: &mut BytesMut,
    ) -> Result<IsNull, Box<dyn std::error::Error + Sync + Send>> {
        match &self.0.value {
            Some(value) => {
                out.extend_from_slice(value);
                Ok(IsNull::No)
            }
            None => Ok(IsNull::Yes),
        }
    }

    fn accepts(_: &Type) -> bool {
        true
    }

    fn encode_format(&self, _: &Type) -> Format {
        match self.0.format {
            ParameterFormat::Text => Format::Text,
            ParameterFormat::Binary => Format::Binary,
        }
    }

    to_sql_checked!();
}
