//! The plan of a start: decides how a node begins a life, from the data that it found.
//!
//! Knows no disk and no user code: found data arrives as values, and questions about the code go to [`Code`]. A shell
//! calls in this order, and changes nothing before the last answer:
//!
//! 1. [`Services::plan`], once it has read which services the data has;
//! 2. [`Services::accept`], once it has recovered the states, and before it cuts the log's tail;
//! 3. [`StartPlan::new`], whose epochs it makes durable before any shard uses one.

use crate::commit_tracker::EpochConfig;
use crate::ids::{Epoch, Generation, Life, Micros, ReplicaId, ServiceId, ShardId};
use crate::record::{RecordKey, TaskHead};
use crate::replication::epoch::EpochRecord;
use crate::replication::lease::Grants;
use crate::replication::table::Losses;
use crate::shard::Settings;
use crate::shard_replica::{self, Recovery, ReplicaLog, ReplicaName, ReplicaSettings, ShardReplica};
use crate::state::State;
use crate::topology::{Topology, TopologyError};
use crate::trials::Trials;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use thiserror::Error;

/// The code of a program, as far as a start asks for it.
pub trait Code {
    /// Whether there is code for a service, or its data may wait without.
    fn has_service(&self, name: &str) -> bool;

    /// Whether there is code for a kind of task that a process of `service` started, or the task may wait without.
    fn has_task(&self, name: &str, service: &str) -> bool;
}

/// The shards and settings that a program wants for one of its services.
#[derive(Clone, Debug)]
pub struct ServiceLimits {
    /// Its name.
    pub name: String,
    /// The number of shards that it must have, if one is asked for.
    pub shards: Option<u32>,
    /// The number of shards that it gets when it is new and none is asked for.
    pub when_new: u32,
    /// The settings of its shards.
    pub settings: Settings,
}

/// The reason that data cannot be started with a program. Nothing was changed.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum StartError {
    /// The services do not fit together or to the data.
    #[error(transparent)]
    Topology(#[from] TopologyError),
    /// The data holds services or tasks that the program has no code for.
    #[error("the data holds {what}, for which no code is registered here, and nothing was changed")]
    NoCode {
        /// Their kind and names.
        what: String,
    },
}

/// The services of a life: those of the data, then those that are new.
#[derive(Clone, Debug)]
pub struct Services {
    topology: Arc<Topology>,
    /// By service.
    settings: Vec<Settings>,
}

impl Services {
    /// Adds the services of a program to those that the data has.
    ///
    /// # Errors
    /// [`StartError::NoCode`] if the data has a service without code, because all of its work that comes due would become
    /// dead letters.
    /// [`StartError::Topology`] if a service of the program is invalid.
    pub fn plan(stored: Topology, asked: &[ServiceLimits], code: &dyn Code) -> Result<Self, StartError> {
        let unknown = stored.services().iter().filter(|service| !code.has_service(&service.name));
        refuse(unknown.map(|service| format!("service {}", service.name)).collect())?;
        let mut topology = stored;
        let mut settings = vec![Settings::default(); topology.services().len()];
        for service in asked {
            let existing = topology.service_id(&service.name).map(|id| topology.service(id).shards);
            let shards = service.shards.or(existing).unwrap_or(service.when_new);
            let id = topology.ensure(&service.name, shards)?;
            settings.resize(topology.services().len(), Settings::default());
            settings[usize::from(id.0)] = service.settings.clone();
        }
        Ok(Self { topology: Arc::new(topology), settings })
    }

    /// Accepts recovered states if there is code for all that waits in them.
    ///
    /// # Errors
    /// [`StartError::NoCode`], naming each kind of task without code.
    pub fn accept(&self, states: &[State], code: &dyn Code) -> Result<(), StartError> {
        let mut unknown = BTreeSet::new();
        for state in states {
            let service = self.topology.service_of(state.shard());
            let service = service.map_or("", |id| &self.topology.service(id).name);
            let tasks = state.tasks().iter();
            for task in tasks.filter_map(|id| state.record::<TaskHead>(&RecordKey::task(*id))) {
                if !code.has_task(&task.name, service) {
                    unknown.insert(format!("task {} of service {service}", task.name));
                }
            }
        }
        refuse(unknown)
    }

    /// Fits the settings to the node: no entry may be larger than half of what the log takes in one write,
    /// `batch_bytes_max`, and a wall clock that is far ahead is confirmed for `clock_confirm`.
    pub fn fit(&mut self, batch_bytes_max: usize, clock_confirm: Micros) {
        for settings in &mut self.settings {
            settings.entry_bytes_max = settings.entry_bytes_max.min(batch_bytes_max / 2);
            settings.clock_confirm = clock_confirm;
        }
    }

    /// Returns the services and their shards.
    #[must_use]
    pub fn topology(&self) -> &Arc<Topology> {
        &self.topology
    }

    /// Makes a replica of a shard that has no log yet, for it is new on its node.
    ///
    /// # Panics
    /// If the topology has no such shard.
    #[must_use]
    pub fn new_replica(&self, shard: ShardId, name: ReplicaName) -> ShardReplica {
        let service = self.topology.service_of(shard).expect("a replica is made for its topology");
        let (topology, settings) = (Arc::clone(&self.topology), self.settings(service).clone());
        let recovery = Recovery::new(State::new(shard));
        ShardReplica::new(name, recovery, Grants::new(), topology, settings, ReplicaSettings::default())
    }

    /// Returns the settings of the shards of a service.
    ///
    /// # Panics
    /// If the id is of another topology.
    #[must_use]
    pub fn settings(&self, service: ServiceId) -> &Settings {
        &self.settings[usize::from(service.0)]
    }
}

/// Facts that a node knows of its earlier lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Past {
    /// All epochs up to this one count as used, for every shard.
    pub epoch_floor: Epoch,
    /// Whether there was no life before this one.
    pub is_new: bool,
    /// Whether the last life was shut down cleanly, with all its work.
    pub ended_cleanly: bool,
}

/// The epochs of a shard in the log and the checkpoints; 0 is none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KnownEpochs {
    /// The shard.
    pub shard: ShardId,
    /// The highest epoch that a replica promised.
    pub promised: Epoch,
    /// The highest epoch of an entry or a cut, also of those that do not count any more.
    pub logged: Epoch,
}

impl KnownEpochs {
    /// Returns the highest epoch that is used.
    #[must_use]
    pub fn highest(&self) -> Epoch {
        self.promised.max(self.logged)
    }
}

/// A replica of a life, with the epoch that it is to lead from the start; `None` for one of several.
pub type Planned = (ShardReplica, Option<Box<EpochRecord>>);

/// The decisions with which a life begins.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StartPlan {
    /// The epoch that each shard begins; it must be promised durably before any shard starts.
    pub epochs: BTreeMap<ShardId, Epoch>,
    /// Whether no waiting cause can have ended a life: no attempts are logged.
    pub assume_clean: bool,
}

impl StartPlan {
    /// Plans a life over recovered states.
    ///
    /// # Panics
    /// As [`draw_epochs`].
    #[must_use]
    pub fn new(past: Past, known: &[KnownEpochs]) -> Self {
        let epochs = draw_epochs(past.epoch_floor, known);
        Self { epochs, assume_clean: past.is_new || past.ended_cleanly }
    }

    /// Returns the replicas of a life. One that is the only one of its shard comes with the epoch that it is to lead alone; its state is
    /// folded to the end of the log. One of several comes with its id and log, and follows until it is made to lead; `grants` is what
    /// these remember of leases. Returns also the turns of the shards that try suspected causes. While the turns hold all others, each
    /// shard that begins to lead begins held too.
    ///
    /// # Panics
    /// If a state is of no shard of the topology, or one that is to lead has no epoch in this plan.
    #[must_use]
    pub fn replicas(
        &self,
        life: Life,
        found: Vec<(State, Option<(ReplicaId, ReplicaLog)>)>,
        grants: &Grants,
        services: &Services,
    ) -> (Vec<Planned>, Trials) {
        let make = |(state, log): (State, Option<(ReplicaId, ReplicaLog)>)| {
            let shard = state.shard();
            let service = services.topology.service_of(shard);
            let settings =
                services.settings(service.expect("each state is of a shard of the topology")).clone();
            let (topology, limits) = (Arc::clone(&services.topology), ReplicaSettings::default());
            if let Some((id, log)) = log {
                let recovery = Recovery::with_log(state, log);
                let name = ReplicaName { id, life };
                return (ShardReplica::new(name, recovery, grants.clone(), topology, settings, limits), None);
            }
            let (name, epoch) = (ReplicaName { id: ReplicaId::FIRST, life }, self.epochs[&shard]);
            let mut recovery = Recovery::new(state);
            recovery.handle_record(shard_replica::Record::Promise(epoch));
            let mut replica = ShardReplica::new(name, recovery, Grants::new(), topology, settings, limits);
            if self.assume_clean {
                replica.assume_clean();
            }
            let record = Box::new(EpochRecord {
                config: EpochConfig::single(epoch, ReplicaId::FIRST),
                life,
                lease: Micros(0),
                generation: Generation(0),
                base: replica.replica().table().last(),
                losses: Losses::default(),
                earlier: if self.assume_clean {
                    BTreeMap::new()
                } else {
                    EpochRecord::unknown_past(ReplicaId::FIRST)
                },
            });
            (replica, Some(record))
        };
        let mut replicas: Vec<_> = found.into_iter().map(make).collect();
        // One of several may never lead: it gets its turn once it does.
        let met = replicas.iter().filter(|(replica, record)| record.is_some() && replica.has_met());
        let trials = Trials::new(met.map(|(replica, _)| replica.shard_id()));
        if trials.is_held() {
            let leading = replicas.iter_mut().filter(|(_, record)| record.is_some());
            leading.for_each(|(replica, _)| replica.hold());
        }
        (replicas, trials)
    }
}

/// Returns the epoch that each shard begins: above all epochs that it promised or logged, and above `floor`.
///
/// # Panics
/// If one of them is `u64::MAX`; a shell that reads its data refuses such.
#[must_use]
pub fn draw_epochs(floor: Epoch, known: &[KnownEpochs]) -> BTreeMap<ShardId, Epoch> {
    let draw = |known: &KnownEpochs| {
        let next = known.highest().max(floor).0.checked_add(1);
        (known.shard, Epoch(next.expect("data that leaves no epoch is refused")))
    };
    known.iter().map(draw).collect()
}

fn refuse(unknown: BTreeSet<String>) -> Result<(), StartError> {
    if unknown.is_empty() {
        return Ok(());
    }
    Err(StartError::NoCode { what: Vec::from_iter(unknown).join(", ") })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::entry::{Cause, Entry, Write};
    use crate::ids::{Incarnation, Index, Seq, StepNumber, TaskId, Time};
    use crate::key::Key;
    use crate::record::{AttemptRecord, Pending, TaskRecord, encode_value};

    /// Code for the services and tasks of these names.
    struct Names(&'static [&'static str]);

    impl Code for Names {
        fn has_service(&self, name: &str) -> bool {
            self.0.contains(&name)
        }

        fn has_task(&self, name: &str, _: &str) -> bool {
            self.0.contains(&name)
        }
    }

    fn asked(name: &str, shards: Option<u32>) -> ServiceLimits {
        ServiceLimits { name: name.to_owned(), shards, when_new: 3, settings: Settings::default() }
    }

    fn stored(services: &[(&str, u32)]) -> Topology {
        let mut topology = Topology::new(Incarnation(1));
        for (name, shards) in services {
            topology.ensure(name, *shards).unwrap();
        }
        topology
    }

    /// A state of one entry, of an epoch, that writes these records.
    fn state(shard: u32, epoch: u64, writes: Vec<Write>) -> State {
        let mut state = State::new(ShardId(shard));
        let (index, epoch, time) = (Index(1), Epoch(epoch), Time(0));
        let (cause, process) = (Cause::Attempt, Key::none());
        let entry =
            Entry { index, epoch, time, cause, process, writes, sends: vec![], reply: None, served: None };
        state.apply(entry).unwrap();
        state
    }

    fn task(name: &str) -> Write {
        let (process, name) = (Key::new("p").unwrap(), name.to_owned());
        let record = TaskRecord {
            process,
            name,
            step: StepNumber(0),
            state: b"".as_slice().into(),
            progress: 0,
            retry: None,
        };
        Write { key: RecordKey::task(TaskId(7)), value: Some(encode_value(&record)) }
    }

    #[test]
    fn services_keep_their_shards_and_new_ones_follow_them() {
        let code = Names(&["a", "b", "c"]);
        let services = [asked("c", None), asked("b", None), asked("a", Some(2))];
        let planned = Services::plan(stored(&[("a", 2), ("b", 4)]), &services, &code).unwrap();
        let all: Vec<_> =
            planned.topology().services().iter().map(|s| (&*s.name, s.first.0, s.shards)).collect();
        assert_eq!(all, [("a", 0, 2), ("b", 2, 4), ("c", 6, 3)]);
    }

    #[test]
    fn data_without_code_and_other_numbers_of_shards_are_refused() {
        let code = Names(&["a"]);
        let refused = Services::plan(stored(&[("a", 1), ("b", 1), ("c", 1)]), &[], &code).unwrap_err();
        assert_eq!(refused, StartError::NoCode { what: "service b, service c".to_owned() });
        let refused = Services::plan(stored(&[("a", 1)]), &[asked("a", Some(2))], &code).unwrap_err();
        assert!(matches!(refused, StartError::Topology(TopologyError::Resharding { .. })));
    }

    #[test]
    fn states_with_a_task_without_code_are_refused() {
        let services = Services::plan(stored(&[("a", 2)]), &[], &Names(&["a"])).unwrap();
        let states = [state(0, 1, vec![]), state(1, 1, vec![task("count")])];
        assert_eq!(services.accept(&states, &Names(&["a", "count"])), Ok(()));
        let what = "task count of service a".to_owned();
        assert_eq!(services.accept(&states, &Names(&["a"])), Err(StartError::NoCode { what }));
    }

    #[test]
    fn epochs_are_above_all_that_their_shard_promised_or_logged() {
        let known = |shard, promised, logged| KnownEpochs {
            shard: ShardId(shard),
            promised: Epoch(promised),
            logged: Epoch(logged),
        };
        // A shard without promises and entries is new. A life that ended before it logged anything has used its epoch
        // nevertheless.
        let all = [known(0, 0, 0), known(1, 5, 3), known(4, 2, 3)];
        let drawn = |floor| {
            let past = Past { epoch_floor: Epoch(floor), is_new: false, ended_cleanly: false };
            StartPlan::new(past, &all)
                .epochs
                .into_iter()
                .map(|(shard, epoch)| (shard.0, epoch.0))
                .collect::<Vec<_>>()
        };
        assert_eq!(drawn(0), [(0, 1), (1, 6), (4, 4)]);
        assert_eq!(drawn(4), [(0, 5), (1, 6), (4, 5)]);
    }

    /// Even where arithmetic wraps, a shard must never begin with epoch 0.
    #[test]
    #[should_panic(expected = "leaves no epoch")]
    fn there_is_no_epoch_above_the_last() {
        let (promised, logged) = (Epoch(u64::MAX), Epoch(1));
        let _ = draw_epochs(Epoch(0), &[KnownEpochs { shard: ShardId(0), promised, logged }]);
    }

    #[test]
    fn all_shards_are_held_while_one_tries_what_the_last_life_met() {
        let services = Services::plan(stored(&[("a", 2)]), &[], &Names(&["a"])).unwrap();
        let begun = Pending::Message { from: ShardId(0), seq: Seq(1) };
        let value = encode_value(&AttemptRecord { count: 0, expires: None, alone: Some(0) });
        let attempt = || vec![Write { key: RecordKey::attempt(&begun), value: Some(value.clone()) }];
        let held = |is_new, ended_cleanly| {
            let states = vec![(state(0, 1, vec![]), None), (state(1, 1, attempt()), None)];
            let known = [0, 1].map(|shard| KnownEpochs {
                shard: ShardId(shard),
                promised: Epoch(0),
                logged: Epoch(1),
            });
            let plan = StartPlan::new(Past { epoch_floor: Epoch(1), is_new, ended_cleanly }, &known);
            let (replicas, trials) = plan.replicas(Life(1), states, &Grants::new(), &services);
            assert_eq!(replicas.len(), 2);
            trials.is_held()
        };
        assert!(held(false, false));
        assert!(!held(false, true), "what waits cannot have ended a life that ended in order");
        assert!(!held(true, false), "there was no life before");
    }
}
