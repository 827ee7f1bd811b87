//! Operators' commands that read or delete checkpoints. Each is done in steps, between which the parts of the node go on: a caller
//! takes all of them, a simulator one after the other.

use crate::checkpoint::{CheckpointFailure, Pin};
use crate::env::{Env, Program};
use crate::life::Life;
use crate::listed::verify_stored;
use stead_core::ids::CheckpointNumber;
use stead_core::state::State;
use stead_core::topology::Topology;
use stead_store::checkpoint::checks::{CheckOutcome, Checked};
use stead_store::checkpoint::collect::Deletable;
use stead_store::checkpoint::manifest::CheckResult;
use stead_store::checkpoint::verify::{Report, ServiceCheck};

/// A verification of a checkpoint, which keeps it from being deleted.
pub struct Verification {
    number: CheckpointNumber,
    /// The report, once the checkpoint is read.
    report: Option<Report>,
    _pin: Option<Pin>,
}

impl Verification {
    /// Begins to verify a checkpoint. Reads nothing yet.
    #[must_use]
    pub fn begin<E: Env>(life: &Life<E>, number: u64) -> Self {
        let number = CheckpointNumber(number);
        Self { number, report: None, _pin: life.shared.pin(number) }
    }

    /// Takes the next step: the checkpoint is read and checked, then the results of its checks are stored. Returns the report after
    /// the last one.
    ///
    /// # Errors
    /// As [`Life::verify`]; it is over then.
    pub fn step<E: Env>(&mut self, life: &Life<E>) -> Result<Option<Report>, CheckpointFailure> {
        life.check_runs()?;
        let stepped = match self.report.take() {
            None => self.read(life).map(|report| {
                self.report = Some(report);
                None
            }),
            Some(report) => self.store(life, &report).map(|()| Some(report)),
        };
        life.heed_store();
        stepped
    }

    fn read<E: Env>(&self, life: &Life<E>) -> Result<Report, CheckpointFailure> {
        let shared = &life.shared;
        let (store, marks) = (&*life.store, &shared.checks.marks);
        let mut stopped = None;
        let mut check = |service: &str, topology: &Topology, cut: &[State]| {
            let mark = match life.write(|| marks.mark(store, self.number, service, true)) {
                Ok(mark) => mark,
                Err(failure) => {
                    let reason = failure.to_string();
                    stopped = Some(failure);
                    return Err(reason);
                }
            };
            // On a full disk it runs without a mark: a person waits for it.
            let found = shared.program.check(service, topology, cut);
            if let Ok(mark) = mark
                && let Err(failure) = life.write(|| marks.end(false, store, &mark, service))
            {
                // A clean shutdown forgives the mark.
                stopped = Some(failure);
            }
            found
        };
        let cluster = Some(shared.copies.owner.cluster);
        let report = verify_stored(store, self.number.0, cluster, life.readers, &shared.program, &mut check);
        match stopped {
            Some(stopped) => Err(stopped),
            None => Ok(report?),
        }
    }

    /// Stores the results of its checks: a checkpoint that was passed over is checked now.
    fn store<E: Env>(&self, life: &Life<E>, report: &Report) -> Result<(), CheckpointFailure> {
        let shared = &life.shared;
        if report.check == CheckOutcome::NotChecked {
            return Ok(());
        }
        let result = |check: &ServiceCheck| CheckResult {
            service: check.service.clone(),
            failure: check.failure.clone(),
            skipped: (check.outcome == CheckOutcome::NotChecked)
                .then(|| "the service's code was not there".to_owned()),
        };
        let results = report.checks.iter().map(result).collect();
        let (incarnation, checked) = (shared.topology.incarnation, shared.now());
        let checked = Checked { incarnation, number: self.number, checked, results };
        life.write(|| checked.store(&*life.store))??;
        Ok(())
    }
}

/// The deletion of a checkpoint.
pub struct Deletion {
    number: CheckpointNumber,
    /// Set once it is known that it may be deleted.
    found: Option<Deletable>,
}

impl Deletion {
    /// Begins to delete a checkpoint. Looks at nothing yet.
    #[must_use]
    pub fn begin(number: u64) -> Self {
        Self { number: CheckpointNumber(number), found: None }
    }

    /// Takes the next step: a look whether the checkpoint may be deleted, then the deletion, unless it is being read. Returns true
    /// after the last one.
    ///
    /// # Errors
    /// As [`Life::delete_checkpoint`]; it is over then.
    pub fn step<E: Env>(&mut self, life: &Life<E>) -> Result<bool, CheckpointFailure> {
        life.check_runs()?;
        let (store, number) = (&*life.store, self.number);
        let stepped = match self.found.take() {
            None => {
                let elsewhere = life.shared.placement.elsewhere().collect();
                Deletable::find(store, number, &elsewhere).map(|found| {
                    self.found = Some(found);
                    false
                })
            }
            Some(found) => {
                let snapshots = &life.shared.snapshots;
                let deleted =
                    life.write(|| found.delete(store, |delete| snapshots.unless_pinned(number, delete)));
                deleted?.map(|()| true)
            }
        };
        life.heed_store();
        Ok(stepped?)
    }
}

impl<E: Env> Life<E> {
    /// # Errors
    /// [`CheckpointFailure::Stopped`] if the node has ended.
    fn check_runs(&self) -> Result<(), CheckpointFailure> {
        if self.shared.is_ended() { Err(self.has_stopped()) } else { Ok(()) }
    }

    fn has_stopped(&self) -> CheckpointFailure {
        CheckpointFailure::Stopped(self.shared.end_reason().to_string())
    }

    /// Writes to the store of checkpoints for an operator. The end of the node releases the data directory only afterwards, so no
    /// other life has the store meanwhile. `write` must run no user code: the end waits for it without a limit.
    ///
    /// # Errors
    /// [`CheckpointFailure::Stopped`] if the node has ended; then `write` was not called.
    fn write<T>(&self, write: impl FnOnce() -> T) -> Result<T, CheckpointFailure> {
        // Within the lock: a mark that begins before the node has ended is there when the end forgives it.
        let written = self.data.while_owned(|| (!self.shared.is_ended()).then(write));
        written.flatten().ok_or_else(|| self.has_stopped())
    }

    /// Ends the node's work if the store has failed under an operator's command: after a failed sync its contents are unknown.
    fn heed_store(&self) {
        if let Some(failure) = self.store.failure().filter(|_| self.shared.failure.get().is_none()) {
            self.shared.fail(failure);
        }
    }

    /// Recomputes a checkpoint from what is stored, and runs the services' checks. Reads all of it. It also runs checks that
    /// were given up because they did not end; one that ends counts as sound again.
    ///
    /// # Errors
    /// [`CheckpointFailure::Store`] if it is damaged; [`CheckpointFailure::Stopped`] if the node has ended, or ends meanwhile. What
    /// is whole but inconsistent is in the report.
    pub fn verify(&self, number: u64) -> Result<Report, CheckpointFailure> {
        let mut verification = Verification::begin(self, number);
        loop {
            if let Some(report) = verification.step(self)? {
                return Ok(report);
            }
        }
    }

    /// Deletes a checkpoint, unless it is the newest one, which a restart needs, or is being read.
    ///
    /// # Errors
    /// [`CheckpointFailure`], which is [`CheckpointFailure::Stopped`] if the node has ended: then nothing was deleted.
    pub fn delete_checkpoint(&self, number: u64) -> Result<(), CheckpointFailure> {
        let mut deletion = Deletion::begin(number);
        while !deletion.step(self)? {}
        Ok(())
    }
}
