//! How a command fails: what is said and the exit status.

use std::{fmt, io, process::ExitCode};

use crate::config::ConfigError;

/// Exit statuses beyond 0, as the help lists them.
pub(super) mod code {
    pub(in super::super) const FAILED: u8 = 1;
    pub(in super::super) const DEGRADED: u8 = 3;
    pub(in super::super) const POLICY: u8 = 4;
    pub(in super::super) const INTEGRITY: u8 = 5;
    pub(in super::super) const TOO_LONG: u8 = 124;
}

/// Why a command ends.
#[derive(Debug)]
pub(super) enum Failed {
    /// Something is wrong, and this is what is said of it.
    Said {
        code: u8,
        error: String,
        remedy: String,
    },
    /// Nobody reads the output any more; that is no failure.
    PipeClosed,
}

impl Failed {
    pub(super) fn because(error: impl fmt::Display) -> Self {
        Self::with_code(code::FAILED, error)
    }

    pub(super) fn with_code(code: u8, error: impl fmt::Display) -> Self {
        Self::Said {
            code,
            error: error.to_string(),
            remedy: String::new(),
        }
    }

    pub(super) fn with_remedy(self, text: impl Into<String>) -> Self {
        match self {
            Self::Said { code, error, .. } => Self::Said {
                code,
                error,
                remedy: text.into(),
            },
            Self::PipeClosed => self,
        }
    }

    /// Says it on stderr.
    pub(super) fn report(&self) -> ExitCode {
        match self {
            Self::Said { code, .. } => {
                super::display::message(&self.to_string());
                ExitCode::from(*code)
            }
            Self::PipeClosed => ExitCode::SUCCESS,
        }
    }
}

impl fmt::Display for Failed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Said { error, remedy, .. } if remedy.is_empty() => f.write_str(error),
            Self::Said { error, remedy, .. } => write!(f, "{error}; {remedy}"),
            Self::PipeClosed => f.write_str("nobody reads the output"),
        }
    }
}

impl From<io::Error> for Failed {
    fn from(error: io::Error) -> Self {
        if error.kind() == io::ErrorKind::BrokenPipe {
            Self::PipeClosed
        } else {
            Self::because(error)
        }
    }
}

impl From<ConfigError> for Failed {
    fn from(error: ConfigError) -> Self {
        Self::because(error)
    }
}
