//! Operators who verify and delete checkpoints, through the code that ships, in steps: the parts of the node, and other operators,
//! go on in between.

use super::rot::unseen_rot;
use super::{Inside, Outcomes, Stop, World};
use crate::bug::Bug;
use crate::marks::Mark;
use crate::violation::Violation;
use stead_core::ids::CheckpointNumber;
use stead_node::{CheckpointFailure, Deletion, Verification};
use stead_store::checkpoint::manifest::Manifest;
use stead_store::checkpoint::verify::Report;

/// The longest time between two steps of a command, in microseconds.
const STEP_MAX: u64 = 20_000;
/// Commands that are under way at a time.
const COMMANDS_MAX: usize = 4;

/// A command of an operator that is under way.
pub(crate) struct Command {
    /// The checkpoint.
    manifest: Manifest,
    what: What,
    /// The number of events before it began.
    begun: u64,
}

enum What {
    Verify(Verification),
    Delete(Deletion),
}

/// The result of a step.
enum Stepped {
    Verified(Result<Option<Report>, CheckpointFailure>),
    Deleted(Result<bool, CheckpointFailure>),
}

impl Command {
    /// Returns the checkpoint that it reads, and keeps from being deleted.
    pub(super) fn reads(&self) -> Option<CheckpointNumber> {
        matches!(self.what, What::Verify(_)).then_some(self.manifest.number)
    }
}

impl World {
    /// An operator begins to verify one of the checkpoints.
    pub(super) fn begin_verification(&mut self) -> Outcomes {
        match self.any_checkpoint()? {
            Some(manifest) => self.verify_in_steps(manifest),
            None => Ok(()),
        }
    }

    /// An operator begins to delete one of the checkpoints.
    pub(super) fn begin_deletion(&mut self) -> Outcomes {
        let Some(manifest) = self.any_checkpoint()? else { return Ok(()) };
        let deletion = Deletion::begin(manifest.number.0);
        self.command_begins(manifest, What::Delete(deletion));
        Ok(())
    }

    fn any_checkpoint(&mut self) -> Result<Option<Manifest>, Stop> {
        if self.node.as_ref().is_some_and(|node| node.commands.len() >= COMMANDS_MAX) {
            return Ok(None);
        }
        let Some(mut stored) = self.list_checkpoints()?.filter(|stored| !stored.is_empty()) else {
            return Ok(None);
        };
        let number = self.odd.usize(..stored.len());
        Ok(Some(stored.swap_remove(number)))
    }

    fn verify_in_steps(&mut self, manifest: Manifest) -> Outcomes {
        let number = manifest.number.0;
        if let Some(verification) = self.operate(|life| Verification::begin(life, number))? {
            self.command_begins(manifest, What::Verify(verification));
        }
        Ok(())
    }

    fn command_begins(&mut self, manifest: Manifest, what: What) {
        let command = Command { manifest, what, begun: self.events };
        self.node.as_mut().expect("it takes commands").commands.push(command);
        self.command_waits();
    }

    fn command_waits(&mut self) {
        let delay = self.odd.u64(..STEP_MAX);
        self.inside(delay, Inside::Operate);
    }

    /// Takes the next step of one of the commands that are under way, also while the node ends.
    pub(super) fn command_goes_on(&mut self) -> Outcomes {
        let node = self.node.as_mut().expect("checked by the caller");
        if node.commands.is_empty() {
            return Ok(());
        }
        let at = self.odd.usize(..node.commands.len());
        let command = node.commands.swap_remove(at);
        self.command_steps(command)
    }

    /// The node has ended: the commands that are under way take a step, which does nothing.
    pub(super) fn commands_outlast(&mut self) -> Outcomes {
        let node = self.node.as_mut().expect("it has ended");
        let commands = std::mem::take(&mut node.commands);
        let before = self.disk.operations();
        for command in commands {
            self.command_steps(command)?;
        }
        if self.disk.operations() == before {
            return Ok(());
        }
        Err(Violation::new(17, "an operator's command uses the disk after the end of the node").into())
    }

    fn command_steps(&mut self, command: Command) -> Outcomes {
        let Command { manifest, mut what, begun } = command;
        let (is_ending, is_over) = (self.is_ending(), self.node.as_ref().is_some_and(|node| node.is_over));
        let stored = self.stored_checkpoints()?;
        self.is_verifying = matches!(what, What::Verify(_));
        if !self.is_verifying {
            // Before each step: another operator's deletion of it may have been refused meanwhile.
            self.note_deletion(manifest.number);
        }
        if self.is_verifying && stored.iter().all(|found| found.number != manifest.number) {
            let what = format!("checkpoint {} was deleted while it was verified", manifest.number);
            return Err(Violation::new(13, what).into());
        }
        let stepped = self.operate(|life| match &mut what {
            What::Verify(verification) => Stepped::Verified(verification.step(life)),
            What::Delete(deletion) => Stepped::Deleted(deletion.step(life)),
        });
        self.is_verifying = false;
        let Some(mut stepped) = stepped? else { return Ok(()) };
        if is_over && self.bug == Some(Bug::DeafOperator) {
            stepped = Stepped::Deleted(Ok(false));
        }
        if let Stepped::Verified(Err(CheckpointFailure::Stopped(_)))
        | Stepped::Deleted(Err(CheckpointFailure::Stopped(_))) = stepped
        {
            if is_ending {
                self.marks.hit(Mark::CommandStopped);
                return Ok(());
            }
            let what =
                format!("the living node has stopped, for a command on checkpoint {}", manifest.number);
            return Err(Violation::new(17, what).into());
        }
        if is_over {
            let what = format!(
                "a command on checkpoint {} goes on after the node had failed or was abandoned",
                manifest.number
            );
            return Err(Violation::new(5, what).into());
        }
        let number = manifest.number;
        let is_newest = stored.last().is_some_and(|newest| newest.number == number);
        match stepped {
            Stepped::Verified(Ok(None)) => {
                if self.is_rotten_in(&manifest) {
                    return Err(unseen_rot(number).into());
                }
            }
            Stepped::Verified(Ok(Some(report))) => {
                self.command_ends(begun);
                if self.bug == Some(Bug::LeakPin) {
                    std::mem::forget(what);
                }
                return self.verified(&manifest, Ok(report));
            }
            Stepped::Verified(Err(error)) => return self.verified(&manifest, Err(error)),
            Stepped::Deleted(Ok(_)) if is_newest => {
                let what = format!("checkpoint {number} may be deleted, and a restart needs it");
                return Err(Violation::new(13, what).into());
            }
            Stepped::Deleted(Ok(false)) => {
                // A reader may begin now.
                let reads = self.odd.u8(..4) == 0;
                if reads && let Some(manifest) = stored.into_iter().find(|found| found.number == number) {
                    self.verify_in_steps(manifest)?;
                }
            }
            Stepped::Deleted(Ok(true)) => {
                self.command_ends(begun);
                return self.deleted(&manifest);
            }
            Stepped::Deleted(Err(error)) => {
                let is_gone = stored.iter().all(|found| found.number != number);
                if self.is_there(number)? {
                    self.note_kept(number);
                }
                return self.not_deleted(&manifest, begun, is_newest || is_gone, &error);
            }
        }
        if let Some(node) = &mut self.node {
            node.commands.push(Command { manifest, what, begun });
            self.command_waits();
        }
        Ok(())
    }

    /// Whether a checkpoint is stored.
    fn is_there(&mut self, number: CheckpointNumber) -> Result<bool, Stop> {
        Ok(self.stored_checkpoints()?.iter().any(|manifest| manifest.number == number))
    }

    fn command_ends(&mut self, begun: u64) {
        // Its own steps are two events.
        if self.events > begun + 2 {
            self.marks.hit(Mark::CommandInSteps);
        }
    }

    /// Handles that a checkpoint was deleted.
    fn deleted(&mut self, manifest: &Manifest) -> Outcomes {
        let number = manifest.number;
        self.marks.hit(Mark::CheckpointDeleted);
        if self.is_there(number)? {
            let what = format!("checkpoint {number} was deleted, and is there");
            return Err(Violation::new(13, what).into());
        }
        self.check_all_checkpoints()
    }

    /// Handles that a deletion, which began after this number of events, was refused; `is_due` if it had to be. So has that of a
    /// checkpoint which is being read.
    fn not_deleted(
        &mut self,
        manifest: &Manifest,
        begun: u64,
        is_due: bool,
        error: &CheckpointFailure,
    ) -> Outcomes {
        let number = manifest.number;
        self.marks.hit(Mark::DeletionRefused);
        let is_in_use = *error == CheckpointFailure::InUse(number.0) && self.readers().contains(&number);
        let node = self.node.as_ref().expect("it has refused the deletion");
        let is_reader = |command: &Command| command.manifest.number == number && command.begun > begun;
        if is_in_use && node.commands.iter().any(is_reader) {
            self.marks.hit(Mark::DeletionMetReader);
        }
        if is_due || is_in_use || self.excuses_command(error) {
            return Ok(());
        }
        Err(Violation::new(0, format!("checkpoint {number} is not deleted: {error}")).into())
    }
}
