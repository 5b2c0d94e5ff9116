//! Authentication that the agent and the server do among themselves, through two TLS connections.
//!
//! Channel binding is there to find out that somebody sits between, and somebody does. So an agent that
//! binds is told what helps, in the place of the server's error, which says nothing.

use bytes::Bytes;

use super::{
    super::{
        Postgres,
        backend::Pass,
        refuse,
        wire::{Frame, Malformed, Reader},
    },
    demand, mechanisms,
    scram::SCRAM_PLUS,
};
use crate::decoder::{Closing, Peer};

/// What is known of the connections beneath and of what was last asked of the agent.
#[derive(Debug, Clone, Copy, Default)]
pub(in super::super) struct Relay {
    /// Both connections are TLS, and both end here.
    pub(in super::super) is_secure: bool,
    /// The server has offered SCRAM-SHA-256-PLUS, and the agent is to choose.
    plus_offered: bool,
}

impl Relay {
    /// Whether the agent's message, `payload`, binds to its TLS connection, which isn't the server's.
    pub(in super::super) fn binds_in_vain(&mut self, payload: &[u8]) -> bool {
        if !std::mem::take(&mut self.plus_offered) {
            return false;
        }
        let mut reader = Reader::new(payload, "SASLInitialResponse");
        let (Ok(mechanism), Ok(first)) = (reader.string(), reader.value()) else {
            return false;
        };
        // `y`: it could bind and saw no offer. The server made one, and refuses that.
        mechanism == SCRAM_PLUS.as_bytes() || first.is_some_and(|first| first.starts_with(b"y"))
    }
}

impl Postgres {
    /// Looks at an Authentication message that is relayed.
    pub(in super::super) fn relay_demand(&mut self, frame: Frame) -> Result<Pass, Malformed> {
        self.relay.plus_offered = false;
        let mut reader = Reader::new(self.upstream_payload(frame), "Authentication");
        if reader.u32()? != demand::SASL || !self.relay.is_secure {
            return Ok(Pass::Whole);
        }
        let offered = mechanisms(reader.rest())?;
        if !offered.contains(&SCRAM_PLUS.as_bytes()) {
            return Ok(Pass::Whole);
        }
        self.relay.plus_offered = true;
        Ok(Pass::Whole)
    }

    /// Says to an agent that binds what helps.
    pub(in super::super) fn refuse_binding(&mut self) {
        let quoted = |text: &str| serde_json::Value::from(text).to_string();
        let destination = self.destination.as_deref().unwrap_or("HOST:PORT");
        let hint = format!(
            "Connect with channel_binding=disable; or have the operator of this host log in for the agent, in interceptor's configuration: credentials: [{{destination: {}, protocol: postgres, user: {}, database: {}, password: {{file: /etc/interceptor/secrets/NAME}}}}]",
            quoted(destination),
            quoted(&self.identity.user),
            quoted(&self.identity.database),
        );
        let message = "interceptor: the client binds its login to its TLS connection (SCRAM-SHA-256-PLUS), which ends at interceptor and not at the server";
        let error: Bytes = refuse::error(
            "FATAL",
            refuse::INVALID_AUTHORIZATION,
            message,
            "The server would refuse it as the work of somebody in between.",
            &hint,
        );
        self.send(Peer::Client, error);
        self.close(Closing::Refused(
            "the client's channel binding can't work through two TLS connections".to_owned(),
        ));
    }
}
