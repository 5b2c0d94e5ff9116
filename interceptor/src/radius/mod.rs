//! What a held operation would touch, found out beforehand: asked of its own server, as a user who may read and no
//! more, on a connection of our own.
//!
//! Nobody waits for it. People are asked at once, and see it when it is there.

mod ask;
mod connect;

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use interceptor_core::{
    operation::{
        Operation, Protocol,
        radius::{BlastRadius, Estimate},
    },
    origin::Origin,
    protocol::postgres::{
        Parameters, Shared,
        radius::{Question, Questions},
    },
};

use crate::{
    credentials::{self, Credentials},
    proxy::{Desk, Network},
    tls::Tls,
};

/// How long it may take in all, with waiting for others of the same agent.
const PATIENCE: Duration = Duration::from_secs(10);

/// How many of one agent's are found out at once.
pub(crate) const AT_ONCE: usize = 2;

/// What it takes to ask about the operations of a session.
pub(crate) struct Scene {
    /// Where it is, and the server is reached from.
    pub(crate) network: Network,
    /// Who, and where to.
    pub(crate) origin: Arc<Origin>,
    /// The way to the server is TLS, and it has proved to be who it is.
    pub(crate) is_secure: bool,
    /// The address may be anybody's: behind a proxy, or in another network.
    pub(crate) is_unknown: bool,
    /// What its StartupMessage said.
    pub(crate) startup: Parameters,
    /// The user as whom it is logged in, where that isn't the one of the StartupMessage.
    pub(crate) logged_in_as: Option<Box<str>>,
    /// It may have changed what names mean.
    pub(crate) may_have_renamed: bool,
}

/// What the answers come from.
pub(crate) struct Means<'a> {
    pub(crate) credentials: &'a Credentials<Arc<Desk>>,
    pub(crate) tls: &'a Tls,
    pub(crate) postgres: &'a Shared,
}

/// Finds out what `operation` would touch. `turn` limits how many of an agent's are found out at once.
pub(crate) async fn find_out(
    means: Means<'_>,
    scene: &Scene,
    operation: &Operation,
    estimate: Estimate,
    turn: &tokio::sync::Semaphore,
) -> BlastRadius {
    let began = Instant::now();
    let mut radius = BlastRadius::default();
    let asking = async {
        let _turn = turn.acquire().await.map_err(|error| error.to_string())?;
        ask_all(&means, scene, operation, estimate, &mut radius).await
    };
    let failed = match tokio::time::timeout(PATIENCE, asking).await {
        Ok(asked) => asked.err(),
        Err(_) => Some(format!("it took longer than {} s", PATIENCE.as_secs())),
    };
    radius.unknown.extend(failed.map(String::into_boxed_str));
    radius.took_ms = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);
    radius
}

async fn ask_all(
    means: &Means<'_>,
    scene: &Scene,
    operation: &Operation,
    estimate: Estimate,
    radius: &mut BlastRadius,
) -> Result<(), String> {
    if operation.protocol != Protocol::Postgres {
        let name = operation.protocol.name();
        return Err(format!(
            "what operations of protocol {name} would touch can't be found out"
        ));
    }
    let Questions { questions, unknown } = Questions::about(operation, &means.postgres.describer);
    radius.unknown = unknown;
    if questions.is_empty() {
        return Ok(());
    }
    let reader = reader(means, scene).await?;
    let database = scene.database();
    let server = connect::connect(means.tls, scene, &reader, database).await?;
    radius.asked_as = Some(reader.user);
    let asked = ask::Asker::new(&server, scene, operation, estimate);
    let mut asked = asked.await.map_err(|error| ask::said(&error))?;
    for question in questions {
        asked.ask(&question, radius).await;
    }
    Ok(())
}

/// As whom it is asked.
async fn reader(means: &Means<'_>, scene: &Scene) -> Result<credentials::Reader, String> {
    let destination = &scene.origin.destination;
    if scene.startup.replication {
        return Err("the session is one for replication".to_owned());
    }
    if scene.is_unknown {
        return Err(format!(
            "who is at {destination} can't be told from its address there, and no password is sent to whom nobody knows: have the agent use TLS"
        ));
    }
    let wanted = credentials::Wanted {
        host: scene
            .origin
            .names
            .first()
            .filter(|_| scene.is_secure)
            .map(|name| &**name),
        is_verified: scene.is_secure,
        user: scene.startup.user.as_deref().unwrap_or_default(),
        database: scene.database(),
        ..credentials::Wanted::default()
    };
    match means.credentials.reader(destination, wanted).await {
        Ok(Some(reader)) => Ok(reader),
        Ok(None) => Err(format!(
            "no user who may read is configured for {destination}: add `- {{destination: \"…\", protocol: postgres, use: blast_radius, login: USER, password: {{file: PATH}}}}` to `credentials`"
        )),
        // What a credential refers to is for the operator's log, which has it where agents log in; people see which.
        Err(error) => Err(error.to_string()),
    }
}

impl Scene {
    /// The database that the session is in.
    fn database(&self) -> &str {
        let user = self.startup.user.as_deref().unwrap_or_default();
        self.startup.database.as_deref().unwrap_or(user)
    }

    /// The role whose search path counts.
    fn role(&self) -> &str {
        let user = self.startup.user.as_deref().unwrap_or_default();
        self.logged_in_as.as_deref().unwrap_or(user)
    }

    /// The search path that its StartupMessage asks for.
    fn search_path(&self) -> Option<&str> {
        self.setting("search_path")
    }

    /// What names without a schema mean can't be told.
    fn is_role_changed(&self) -> bool {
        self.may_have_renamed
            || self.setting("role").is_some()
            || self.setting("session_authorization").is_some()
    }

    fn setting(&self, wanted: &str) -> Option<&str> {
        let mut settings = self.startup.settings.iter().rev();
        let found = settings.find(|(name, _)| name.eq_ignore_ascii_case(wanted));
        found.map(|(_, value)| value.as_str())
    }
}

/// Whether it takes the search path to know what `question` is about.
fn is_by_path(question: &Question) -> bool {
    use interceptor_core::protocol::postgres::radius::{Target, Which};

    let target = match &question.target {
        Target::Relation(name) => name.schema.is_none(),
        Target::Result | Target::Schema(_) => false,
    };
    let query = match &question.rows {
        Which::Query(query) => !query.is_qualified,
        Which::Unknown | Which::Whole | Which::Number(_) => false,
    };
    target || query
}
