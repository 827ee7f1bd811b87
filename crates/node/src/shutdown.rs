//! The end of a node: the core's [`Shutdown`] decides, this performs.

use crate::bell::Bell;
use crate::data::Data;
use crate::env::{Env, Watch};
use crate::events;
use crate::part::{Part, Turned};
use crate::roster::PartId;
use crate::shared::Shared;
use std::convert::Infallible;
use std::sync::Arc;
use stead_core::ids::{Micros, Time};
use stead_core::shutdown::{Event, Group, Shutdown, Step};

/// Longest time between two looks at the parts that have yet to end: most of them ring.
const LOOK: Micros = Micros::from_millis(20);

/// Time for which the end waits until clients over the network have taken the answers that came last.
const ANSWERS: Micros = Micros::from_secs(1);
/// Interval at which it looks whether they have.
const ANSWERS_LOOK: Micros = Micros::from_millis(5);

/// The part that ends the others, one group after the other, and releases the data directory last. In production the thread that
/// ends the node drives it.
pub struct EndPart {
    shutdown: Shutdown,
    data: Arc<Data>,
    /// The part by which the node is ended, if it is one of its own: it is not waited for.
    by: Option<PartId>,
    bell: Arc<Bell>,
    /// The time until which it waits for answers to leave, once nothing else answers.
    answers_until: Option<Time>,
}

impl EndPart {
    /// Creates the end of a node that waits for steps of tasks and queries until a time. `by` is the part by which the node is
    /// ended, `None` for a caller from outside.
    pub(crate) fn new<E: Env>(hub: &Shared<E>, data: Arc<Data>, until: Time, by: Option<PartId>) -> Self {
        let bell: Arc<Bell> = Arc::default();
        hub.roster.set_bell(Arc::clone(&bell));
        let mut shutdown = Shutdown::new(until);
        if by.is_some() {
            shutdown.handle(hub.now(), Event::EndsItself);
        }
        Self { shutdown, data, by, bell, answers_until: None }
    }

    /// Whether the parts of a group have ended, as far as the end of the node waits for them.
    fn has_ended<E: Env>(&self, hub: &Shared<E>, group: Group) -> bool {
        hub.roster.has_ended(group, self.by)
            && match group {
                Group::Queries => hub.queries.has_answered(self.by),
                Group::Watchdog => hub.queries.has_no_idle_part(),
                Group::Tasks | Group::Checkpoints | Group::Workers | Group::Log => true,
            }
    }

    /// Leaves parts whose user code has not ended to themselves: nothing that they bring is taken any more.
    fn abandon<E: Env>(&self, hub: &Shared<E>, group: Group) {
        match group {
            Group::Tasks => {
                for (number, step) in hub.steps.running(self.by) {
                    hub.roster.leave(PartId::Step(number));
                    events::warn(format_args!(
                        "{step} is still running and is abandoned; it is repeated after the next start"
                    ));
                }
            }
            Group::Watchdog => hub.roster.leave(PartId::Checks),
            Group::Checkpoints | Group::Workers | Group::Queries | Group::Log => {}
        }
    }
}

impl<E: Env> Part<Shared<E>> for EndPart {
    type Error = Infallible;

    fn bell<'h>(&'h self, _: &'h Shared<E>) -> &'h Bell {
        &self.bell
    }

    /// Performs one step. It has ended once all parts have, and the data directory is released.
    fn turn(&mut self, hub: &Shared<E>, now: Time) -> Result<Turned, Infallible> {
        if hub.failure.get().is_some() {
            self.shutdown.handle(now, Event::Failed);
        }
        if let Some(until) = hub.killed_until() {
            self.shutdown.handle(now, Event::Killed(until));
        }
        let mut step = self.shutdown.step(now);
        hub.watch.shutdown(&mut step);
        match step {
            Step::Stop(group) => hub.stop(group),
            Step::StopAll => {
                hub.close_connections();
                hub.stop_all();
            }
            Step::Await(group, limit) => {
                let have_left = hub.serve_connections(now);
                if !self.has_ended(hub, group) {
                    let look = now.plus(LOOK);
                    return Ok(Turned::Until(Some(limit.map_or(look, |limit| limit.min(look)))));
                }
                if group == Group::Queries {
                    // The last that answers clients.
                    if !have_left && now < *self.answers_until.get_or_insert(now.plus(ANSWERS)) {
                        return Ok(Turned::Until(Some(now.plus(ANSWERS_LOOK))));
                    }
                    hub.close_connections();
                }
                self.shutdown.handle(now, Event::Ended(group));
            }
            Step::Abandon(group) => self.abandon(hub, group),
            Step::MarkClean => self.data.mark_clean(&hub.checks.marks),
            Step::Finish => {
                hub.close_connections();
                self.data.release();
                return Ok(Turned::Ended);
            }
        }
        Ok(Turned::Again)
    }
}
