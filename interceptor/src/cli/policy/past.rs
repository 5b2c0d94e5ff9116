//! Which part of the past is asked about, and where it is read.

use std::path::{Path, PathBuf};

use interceptor_core::record::Timestamp;

use super::super::{Context, export::moment, failed::Failed, offline};
use crate::{journal::Reader, past::Asked};

/// Where the past is read.
#[derive(Debug, clap::Args)]
pub(super) struct Source {
    /// Read this state folder (a daemon's, or a copy) instead of the configured one
    #[arg(long, value_name = "DIR")]
    state: Option<PathBuf>,
}

/// Which part of it is asked about.
#[derive(Debug, clap::Args)]
pub(super) struct Since {
    /// Nothing before: a time (2026-11-20T22:07:01Z) or how long ago (7d, 12h, 90m)
    #[arg(long, value_name = "T", value_parser = moment)]
    since: Option<Timestamp>,
}

impl Source {
    /// A reader of it. It needs no daemon, and the right to read the folder.
    pub(super) fn reader(&self, context: &Context) -> Result<Reader, Failed> {
        let folder: &Path = self.state.as_ref().unwrap_or(&context.config.state);
        offline::reader(context, folder)
    }
}

impl Since {
    pub(super) fn asked(&self, agent: Option<&String>) -> Asked {
        Asked {
            since: self.since,
            agent: agent.cloned(),
        }
    }
}
