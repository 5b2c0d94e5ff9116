//! What follows a ruling: exactly the judged bytes go upstream, or something that fails in their place.

use std::sync::Arc;

use bytes::{Buf, Bytes, BytesMut};

use super::{
    Phase, Postgres,
    describe::Described,
    frontend::Proposal,
    names::{Leave, Portal},
    pipeline::{Expect, Refused, Running},
    refuse,
    wire::{self, StartupFrame},
};
use crate::{
    decoder::{CancelKey, Closing, Peer, Step},
    ruling::{Permit, Refusal},
};

impl Postgres {
    /// Releases exactly the bytes of `proposal`.
    pub(super) fn permitted(&mut self, number: u64, proposal: Proposal, permit: Permit) {
        if self.skipping {
            return self.too_late(number, &proposal);
        }
        match proposal {
            Proposal::Startup(packet) => self.ask_for_login(packet),
            Proposal::Cancel(packet) => {
                self.phase = Phase::Cancelling;
                let key = CancelKey(packet.slice(StartupFrame::HEADER..));
                self.send(Peer::Upstream, packet);
                self.steps.push_back(Step::Cancel(key));
            }
            Proposal::Query {
                frame,
                text,
                described,
            } => {
                if self.needs_answer_first(&described.description, None, &permit) {
                    self.deferred = Some((
                        number,
                        Proposal::Query {
                            frame,
                            text,
                            described,
                        },
                        permit,
                    ));
                    return;
                }
                if let Some(refusal) = self.unmaskable(&described.description, None, &permit) {
                    self.refused(
                        number,
                        Proposal::Query {
                            frame,
                            text,
                            described,
                        },
                        refusal,
                    );
                    return;
                }
                self.names.try_changes(&described.names, &text);
                self.barrier = described.barrier || !described.names.is_empty();
                let masks = permit.masks().clone();
                let running = Running {
                    number,
                    released: self.now,
                    described,
                    text,
                    masks,
                };
                self.pipeline.push(Expect::Query(running));
                self.segment_open = false;
                self.send(Peer::Upstream, frame);
            }
            Proposal::Bind {
                frame,
                name,
                portal,
            } => {
                if let Ok(mut leave) = portal.leave.lock() {
                    *leave = Some(Leave::Granted(number, permit));
                }
                self.bound(name, portal);
                self.send(Peer::Upstream, frame);
            }
            Proposal::Execute { portal, described } => {
                if self.needs_answer_first(&described.description, Some(&portal), &permit) {
                    self.deferred = Some((number, Proposal::Execute { portal, described }, permit));
                    return;
                }
                if let Some(refusal) =
                    self.unmaskable(&described.description, Some(&portal), &permit)
                {
                    self.refused(number, Proposal::Execute { portal, described }, refusal);
                    return;
                }
                self.run_portal(number, portal, described, &permit);
            }
            Proposal::FunctionCall { frame, described } => {
                let masks = permit.masks().clone();
                let text = Bytes::from_static(b"FunctionCall");
                let running = Running {
                    number,
                    released: self.now,
                    described,
                    text,
                    masks,
                };
                self.barrier = true;
                self.pipeline.push(Expect::FunctionCall(running));
                self.segment_open = false;
                self.send(Peer::Upstream, frame);
            }
        }
    }

    pub(super) fn run_portal(
        &mut self,
        number: u64,
        portal: Arc<Portal>,
        described: Arc<Described>,
        permit: &Permit,
    ) {
        let masks = permit.masks().clone();
        let barrier = described.barrier || !described.names.is_empty();
        if !masks.is_empty() && !self.layout_is_coming(&portal) {
            self.ask_for_layout(&portal);
        }
        self.names
            .try_changes(&described.names, &portal.statement.text);
        let text = portal.statement.text.clone();
        let running = Running {
            number,
            released: self.now,
            described,
            text,
            masks,
        };
        self.segment_open = true;
        self.pipeline.push(Expect::Execute(running, portal));
        if let Ok(Some(frame)) = self.next_client_frame() {
            self.accepted += frame.len;
        }
        if barrier {
            self.flush_barrier();
        }
    }

    /// While it was ruled on, something before it failed: the server would discard it, and so do we.
    fn too_late(&mut self, number: u64, proposal: &Proposal) {
        if matches!(proposal, Proposal::Execute { .. })
            && let Ok(Some(frame)) = self.next_client_frame()
        {
            self.send_accepted();
            self.client.advance(frame.len);
        }
        self.skipped(number);
    }

    /// Has the server send what it owes, since the client isn't read on before.
    pub(super) fn flush_barrier(&mut self) {
        self.send_accepted();
        let mut flush = BytesMut::with_capacity(wire::HEADER);
        wire::frame(&mut flush, b'H', |_| {});
        self.send(Peer::Upstream, flush.freeze());
        self.barrier = true;
    }

    /// Drops the bytes of `proposal` and has the server fail in their place.
    pub(super) fn refused(&mut self, number: u64, proposal: Proposal, refusal: Refusal) {
        if self.skipping {
            return self.too_late(number, &proposal);
        }
        let refused = Refused { number, refusal };
        match proposal {
            Proposal::Startup(_) | Proposal::Cancel(_) => {
                let error = refuse::refusal(&refused.refusal, "FATAL");
                self.send(Peer::Client, error);
                self.close(Closing::Refused(refused.refusal.reason.to_string()));
            }
            Proposal::Query { .. } => {
                self.pipeline.push(Expect::Refused {
                    refused,
                    ready: true,
                });
                self.segment_open = false;
                self.send(Peer::Upstream, refuse::failing_query());
            }
            Proposal::FunctionCall { .. } => {
                self.pipeline.push(Expect::Refused {
                    refused,
                    ready: true,
                });
                self.segment_open = false;
                self.send(Peer::Upstream, refuse::failing_call());
            }
            Proposal::Bind { .. } | Proposal::Execute { .. } => {
                self.send_accepted();
                if matches!(proposal, Proposal::Execute { .. })
                    && let Ok(Some(frame)) = self.next_client_frame()
                {
                    self.client.advance(frame.len);
                }
                self.pipeline.push(Expect::Refused {
                    refused,
                    ready: false,
                });
                self.segment_open = true;
                // The server discards all that follows up to Sync; what it would discard isn't sent.
                self.skipping = true;
                self.send(Peer::Upstream, refuse::failing_parse());
            }
        }
    }
}
