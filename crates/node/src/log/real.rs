//! The log's parts in a real node.

use crate::bell::Bell;
use crate::env::{Env, Watch};
use crate::events;
use crate::inbox::Command;
use crate::log::{LogDesk, LogHub, LogPart, PreparePart};
use crate::part::{Part, Turned};
use crate::shared::{Shared, stage};
use std::sync::atomic::Ordering;
use stead_core::ids::{Micros, Time};
use stead_core::shard::Input;
use stead_store::wal::{Wal, WalError};

impl<E: Env> LogHub for Shared<E> {
    fn desk(&self) -> &LogDesk {
        &self.log
    }

    fn is_over(&self) -> bool {
        self.is_over()
    }

    fn is_ending(&self) -> bool {
        self.stage.load(Ordering::Relaxed) == stage::STOPS
    }

    fn is_ended(&self) -> bool {
        self.is_ended()
    }

    fn durable(&self, worker: usize, ticket: u64) {
        self.inboxes[worker].set_durable(ticket);
    }

    fn stored(&self, worker: usize, ticket: u64) {
        self.inboxes[worker].set_stored(ticket);
    }

    fn full(&self, is_full: bool, shortage: &str) {
        if is_full {
            events::warn(format_args!("writes are refused until there is room: {shortage}"));
        } else {
            events::info(format_args!("the log has room again: writes are taken"));
        }
        for inbox in &self.inboxes {
            inbox.push(Command::every(Input::Full(is_full)));
        }
    }

    fn mark(&self, wal: &mut Wal) -> Result<bool, WalError> {
        self.watch.mark(wal)
    }

    fn written(&self) {
        self.counters.log_writes.add(1);
    }

    fn synced(&self, took: Micros) {
        self.counters.log_sync_micros.add(took.0);
        self.counters.log_syncs.add(1);
    }
}

impl<E: Env> Part<Shared<E>> for LogPart {
    type Error = WalError;

    fn bell<'h>(&self, shared: &'h Shared<E>) -> &'h Bell {
        &shared.log.bell
    }

    fn spins(&self, shared: &Shared<E>) -> u32 {
        shared.spins_log
    }

    fn turn(&mut self, shared: &Shared<E>, now: Time) -> Result<Turned, WalError> {
        self.turn(shared, now)
    }
}

impl<E: Env> Part<Shared<E>> for PreparePart {
    type Error = WalError;

    fn bell<'h>(&self, shared: &'h Shared<E>) -> &'h Bell {
        &shared.log.preparer_bell
    }

    fn turn(&mut self, shared: &Shared<E>, now: Time) -> Result<Turned, WalError> {
        self.turn(shared, now)
    }
}
