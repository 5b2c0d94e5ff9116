//! What interceptor asks the server on its own account, between the client's messages: the tables that
//! masks need to know, the layout of rows that nobody described. The client doesn't see the answers.

use std::sync::{Arc, Mutex, atomic::Ordering};

use bytes::BytesMut;

use super::{
    Postgres,
    catalog::{Catalog, CatalogBuilder},
    mask,
    names::{Layout, Portal},
    pipeline::{Expect, Ours},
    wire::{self, Bind, Execute, Named, Parse},
};
use crate::{
    decoder::Peer,
    mask::MaskPlan,
    operation::Description,
    ruling::{Cause, Permit, Refusal},
};

impl Postgres {
    /// Puts in what has to be known about the server's tables before this operation's rows can be
    /// masked; whether the operation has to wait for the answer.
    pub(super) fn needs_answer_first(
        &mut self,
        description: &Description,
        portal: Option<&Arc<Portal>>,
        permit: &Permit,
    ) -> bool {
        let plan = permit.masks().clone();
        if plan.columns.is_empty() || self.replication || self.status == b'E' {
            return false;
        }
        let mut waits = false;
        if self.catalog_is_stale() {
            self.ask_for_catalog(&plan);
            waits = copies_out(description) || plan.is_strict();
        }
        if let Some(portal) = portal
            && plan.is_strict()
            && !self.layout_is_known(portal)
        {
            if !self.layout_is_coming(portal) {
                self.ask_for_layout(portal);
            }
            waits = true;
        }
        if waits {
            self.flush_barrier();
        }
        waits
    }

    /// Why the result of an operation can't be masked as its rules want, where that is so.
    pub(super) fn unmaskable(
        &mut self,
        description: &Arc<Description>,
        portal: Option<&Arc<Portal>>,
        permit: &Permit,
    ) -> Option<Refusal> {
        let plan = permit.masks();
        if plan.columns.is_empty() {
            return None;
        }
        let reason = if copies_out(description) {
            mask::copy_out_refusal(plan, self.catalog.as_deref(), description)
        } else if plan.is_strict()
            && let Some(portal) = portal
        {
            match self.layout(portal) {
                Some(message) => {
                    let shape = self
                        .shapes
                        .shape(&message, plan, self.catalog.as_ref(), description)
                        .ok()?;
                    shape.mask.refusal().map(str::to_owned)
                }
                None => None,
            }
        } else {
            None
        }?;
        let rule = permit.decision().rule.clone();
        Some(Refusal {
            cause: Cause::Denied,
            rule,
            reason: reason.into(),
            approval: None,
        })
    }

    /// Asks the server what tables and views there are, between the client's own messages.
    pub(super) fn ask_for_catalog(&mut self, plan: &MaskPlan) {
        const NAME: &[u8] = b"interceptor catalog";
        let Some(text) = Catalog::query(plan) else {
            return;
        };
        self.send_accepted();
        let mut out = BytesMut::new();
        // A statement or portal of that name may be left from an attempt that failed half way.
        let close = |out: &mut BytesMut| {
            Named::Statement(NAME).encode(b'C', out);
            Named::Portal(NAME).encode(b'C', out);
        };
        close(&mut out);
        Parse::encode(NAME, text.as_bytes(), &mut out);
        Bind::encode_plain(NAME, NAME, &mut out);
        Execute::encode(NAME, &mut out);
        // The portal would live as long as the transaction.
        close(&mut out);
        for ours in [
            Ours::Complete,
            Ours::Complete,
            Ours::Complete,
            Ours::Complete,
            Ours::Catalog,
            Ours::Complete,
            Ours::Complete,
        ] {
            self.pipeline.push(Expect::Ours(ours));
        }
        if !self.segment_open {
            wire::frame(&mut out, b'S', |_| {});
            self.pipeline.push(Expect::Ours(Ours::Sync));
        }
        // As of now: what changes while the server answers makes it stale again.
        self.catalog_epoch = self.shared.schema_epoch.load(Ordering::Relaxed);
        self.catalog_rows = Some(CatalogBuilder::default());
        self.send(Peer::Upstream, out.freeze());
    }

    pub(super) fn ask_for_layout(&mut self, portal: &Arc<Portal>) {
        self.send_accepted();
        ask(&portal.layout);
        let mut out = BytesMut::new();
        Named::Portal(&portal.name).encode(b'D', &mut out);
        self.segment_open = true;
        self.pipeline
            .push(Expect::Ours(Ours::Layout(portal.clone())));
        self.send(Peer::Upstream, out.freeze());
    }

    pub(super) fn layout_is_coming(&self, portal: &Portal) -> bool {
        asked(&portal.layout) || asked(&portal.statement.layout)
    }

    pub(super) fn layout_is_known(&self, portal: &Portal) -> bool {
        [&portal.layout, &portal.statement.layout]
            .into_iter()
            .any(|layout| {
                layout
                    .lock()
                    .is_ok_and(|layout| matches!(*layout, Layout::Known(_) | Layout::NoData))
            })
    }
}

pub(super) fn copies_out(description: &Description) -> bool {
    description
        .actions
        .iter()
        .any(|action| action.starts_with("COPY TO"))
}

pub(super) fn ask(layout: &Mutex<Layout>) {
    if let Ok(mut layout) = layout.lock()
        && matches!(*layout, Layout::Unknown)
    {
        *layout = Layout::Asked;
    }
}

pub(super) fn asked(layout: &Mutex<Layout>) -> bool {
    layout
        .lock()
        .is_ok_and(|layout| !matches!(*layout, Layout::Unknown))
}
