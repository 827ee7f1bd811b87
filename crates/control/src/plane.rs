//! A node's member of the group.

use crate::board::{Board, Role, Status, Watch};
use crate::error::{ChangeError, ProposeError, ReadError, StartError};
use crate::fault::StorageFault;
use crate::log::{Identity, Log};
use crate::machine::{Committed, Machine};
use crate::member::Member;
use crate::network::Network;
use crate::pace::Pace;
use crate::proposal::{COMMAND_BYTES_MAX, Proposal};
use crate::settings::Settings;
use crate::store::{Ending, LogStore, StateStore};
use crate::transport::Transport;
use crate::types::{Metrics, Peer, Raft};
use crate::wire::Change;
use openraft::Config;
use std::collections::BTreeMap;
use std::sync::atomic::AtomicUsize;
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::thread::JoinHandle;
use std::time::Duration;
use stead_core::ids::NodeId;
use stead_store::data_dir::DataDir;
use stead_store::disk::Disk;
use tokio::runtime::Handle;
use tokio::sync::{oneshot, watch};

/// The directory of the files, in the data directory.
pub const DIR: &str = "control";

/// Longest time for the first writes of a start, which wait for room on the disk.
const START_MAX: Duration = Duration::from_secs(10);

/// The beginning of a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Begin {
    /// It is the first node of a new cluster, and its only voter, at this address. Files that an unfinished start left are
    /// used.
    Found {
        /// The address at which other nodes will reach it.
        address: String,
    },
    /// It waits to be placed by the leader of a cluster. Files that an unfinished start left are used.
    Join,
    /// It was there before, so its files have to be there.
    Resume,
}

/// The arguments of a start.
pub struct Options<M> {
    /// The node and its cluster.
    pub identity: Identity,
    /// The beginning.
    pub begin: Begin,
    /// The state before the first command.
    pub initial: M,
    /// Intervals and bounds.
    pub settings: Settings,
    /// Called after each change of the committed state or of the status, on the plane's thread. It must not block.
    pub on_change: Box<dyn Fn() + Send + Sync>,
}

/// A node's member of the group: its vote, its log, its copy of the state.
///
/// It has one thread, which also writes to the disk. A sole voter without learners wakes only when it is called.
pub struct Plane<M: Machine> {
    member: Arc<Member<M>>,
    handle: Handle,
    stop: Mutex<Option<oneshot::Sender<()>>>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl<M: Machine> Plane<M> {
    /// Opens the files in [`DIR`] of `disk`, whose owner is the caller, and begins to take part.
    ///
    /// # Errors
    /// If the files cannot be used, or no thread can be started.
    pub fn start(
        options: Options<M>,
        disk: Arc<dyn Disk>,
        transport: Arc<dyn Transport>,
    ) -> Result<Self, StartError> {
        let config = options.settings.config()?;
        let (stop, stopped) = oneshot::channel();
        let (begun, beginning) = mpsc::channel();
        let thread = std::thread::Builder::new().name("stead-control".to_owned());
        let run = move || {
            // openraft's own events mean nothing to users, and repeat what the status says.
            let _quiet = tracing::subscriber::set_default(tracing::subscriber::NoSubscriber::default());
            let pace = Pace::of_thread();
            let mut builder = tokio::runtime::Builder::new_current_thread();
            let runtime = match builder.enable_time().build() {
                Ok(runtime) => runtime,
                Err(error) => return drop(begun.send(Err(StartError::Thread(error)))),
            };
            runtime.block_on(run(options, config, disk, transport, pace, begun, stopped));
        };
        let thread = thread.spawn(run).map_err(StartError::Thread)?;
        let begun =
            beginning.recv().unwrap_or_else(|_| Err(StartError::Ended("its thread panicked".to_owned())));
        match begun {
            Ok((member, handle)) => {
                Ok(Self { member, handle, stop: Mutex::new(Some(stop)), thread: Mutex::new(Some(thread)) })
            }
            Err(error) => {
                // It ends by itself.
                let _ = thread.join();
                Err(error)
            }
        }
    }

    /// As [`Plane::start`], in a data directory, whose identity it takes. The directory notes that the files are there: from
    /// then on `begin` does not matter, and the plane resumes, so that a node whose files are lost founds no second cluster.
    ///
    /// # Errors
    /// As [`Plane::start`], or if the directory cannot note it.
    pub fn start_in(
        mut options: Options<M>,
        dir: &mut DataDir,
        transport: Arc<dyn Transport>,
    ) -> Result<Self, StartError> {
        options.identity = Identity::of(dir.meta());
        if dir.meta().has_control {
            options.begin = Begin::Resume;
        }
        let plane = Self::start(options, Arc::clone(dir.disk()), transport)?;
        dir.update(|meta| meta.has_control = true)?;
        Ok(plane)
    }

    /// Returns a proposal of a command, which may be proposed any number of times, at any node.
    #[must_use]
    pub fn proposal(&self, command: &M::Command) -> Proposal {
        Proposal::new(self.member.board.committed().applied, M::encode_command(command))
    }

    /// Proposes a command to the leader, and waits until it is applied.
    ///
    /// # Errors
    /// [`ProposeError`]. After [`ProposeError::Unknown`] propose the same proposal again.
    pub fn propose(&self, proposal: &Proposal, wait: Duration) -> Result<M::Outcome, ProposeError> {
        let (sender, receiver) = mpsc::channel();
        self.propose_then(proposal.clone(), wait, move |outcome| drop(sender.send(outcome)));
        // It is dropped without an outcome if the plane ends meanwhile.
        receiver.recv().unwrap_or(Err(ProposeError::Unknown))
    }

    /// As [`Plane::propose`], without waiting: `then` gets the outcome on the plane's thread, and must not block. It is
    /// dropped if the plane ends before.
    pub fn propose_then(
        &self,
        proposal: Proposal,
        wait: Duration,
        then: impl FnOnce(Result<M::Outcome, ProposeError>) + Send + 'static,
    ) {
        let bytes = proposal.command.len();
        if bytes > COMMAND_BYTES_MAX {
            return then(Err(ProposeError::TooLarge { bytes }));
        }
        if let Some(failure) = self.ended() {
            return then(Err(ProposeError::Stopped(failure)));
        }
        let member = Arc::clone(&self.member);
        self.handle.spawn(async move { then(member.propose(&proposal, wait).await) });
    }

    /// Returns a state that includes all that was answered anywhere before this call.
    ///
    /// # Errors
    /// [`ReadError`].
    pub fn read(&self, wait: Duration) -> Result<Committed<M>, ReadError> {
        if let Some(failure) = self.ended() {
            return Err(ReadError::Stopped(failure));
        }
        let (sender, receiver) = mpsc::channel();
        let member = Arc::clone(&self.member);
        self.handle.spawn(async move { drop(sender.send(member.read(wait).await)) });
        receiver.recv().unwrap_or(Err(ReadError::NoAnswer))
    }

    /// Changes the nodes of the group, one at a time: place, wait, promote. A change that was made already succeeds.
    ///
    /// # Errors
    /// [`ChangeError`]. After [`ChangeError::Unknown`] make the same change again.
    pub fn change(&self, change: Change, wait: Duration) -> Result<(), ChangeError> {
        if let Some(failure) = self.ended() {
            return Err(ChangeError::Stopped(failure));
        }
        let (sender, receiver) = mpsc::channel();
        let member = Arc::clone(&self.member);
        self.handle.spawn(async move { drop(sender.send(member.change(&change, wait).await)) });
        receiver.recv().unwrap_or(Err(ChangeError::Unknown))
    }

    /// Takes a request that another node's transport carried here. `answer` gets the answer for it on the plane's thread,
    /// and must not block; it is dropped if the plane has ended.
    pub fn receive(&self, from: NodeId, request: Vec<u8>, answer: impl FnOnce(Vec<u8>) + Send + 'static) {
        let member = Arc::clone(&self.member);
        self.handle.spawn(async move { answer(member.receive(from, &request).await) });
    }

    /// Returns the newest committed state at this node; another node may have a newer one.
    #[must_use]
    pub fn newest(&self) -> Committed<M> {
        self.member.board.committed()
    }

    /// Returns a receiver of the committed states. The first one that it returns is the newest one.
    #[must_use]
    pub fn watch(&self) -> Watch<M> {
        Watch { board: Arc::clone(&self.member.board), seen: None }
    }

    /// Returns the leader, if this node knows one.
    #[must_use]
    pub fn leader(&self) -> Option<NodeId> {
        self.status().leader
    }

    /// Returns the condition of this node's member.
    #[must_use]
    pub fn status(&self) -> Status {
        self.member.board.status()
    }

    /// Waits until the status is as wanted, and returns it; `None` after the time, or once the plane has ended.
    #[must_use]
    pub fn wait_status(&self, wait: Duration, wanted: impl Fn(&Status) -> bool) -> Option<Status> {
        self.member.board.wait(wait, |_, status| wanted(status).then(|| status.clone()))
    }

    #[cfg(test)]
    pub(crate) fn pace(&self) -> &Pace {
        &self.member.pace
    }

    /// Returns the reason for which the plane has ended, if it has.
    fn ended(&self) -> Option<Option<String>> {
        let status = self.status();
        status.is_stopped.then_some(status.failure)
    }

    /// Ends the plane, and returns once nothing of it runs or writes. A call that waits gets an error.
    pub fn shutdown(&self) {
        let stop = self.stop.lock().unwrap_or_else(PoisonError::into_inner).take();
        drop(stop);
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        // Called on the plane's own thread, by a caller's function, it cannot wait for itself.
        if let Some(thread) = thread.filter(|thread| thread.thread().id() != std::thread::current().id()) {
            // A panic has ended it, too.
            let _ = thread.join();
        }
    }
}

impl<M: Machine> Drop for Plane<M> {
    fn drop(&mut self) {
        self.shutdown();
    }
}

type Begun<M> = Result<(Arc<Member<M>>, Handle), StartError>;

/// Runs a plane on its thread until it is stopped.
async fn run<M: Machine>(
    options: Options<M>,
    config: Config,
    disk: Arc<dyn Disk>,
    transport: Arc<dyn Transport>,
    pace: Pace,
    begun: mpsc::Sender<Begun<M>>,
    stopped: oneshot::Receiver<()>,
) {
    let (settings, identity, begin) = (options.settings, options.identity, options.begin.clone());
    let board = Arc::new(Board::new(identity.node, options.initial.clone(), options.on_change));
    let network = Network { transport };
    let ending = Ending::default();
    let opened = open(&disk, identity, &begin, options.initial, &board, &ending);
    let (log, state) = match opened {
        Ok(opened) => opened,
        Err(fault) => return drop(begun.send(Err(fault.into()))),
    };
    let node = u64::from(identity.node.0);
    let created = Raft::new(node, Arc::new(config), network.clone(), log.clone(), state).await;
    let raft = match created {
        Ok(raft) => raft,
        Err(error) => return drop(begun.send(Err(StartError::Ended(error.to_string())))),
    };
    let (changes, begun_at) = (AtomicUsize::new(0), tokio::time::Instant::now());
    let member =
        Arc::new(Member { node, raft, network, log, board, pace, settings, changes, begun: begun_at });
    let first = tokio::time::timeout(START_MAX, first_steps(&member, &begin)).await;
    let first =
        first.unwrap_or_else(|_| Err(StartError::Ended("its disk is full or does not answer".to_owned())));
    let outcome = first.map(|()| (Arc::clone(&member), Handle::current()));
    let failed = outcome.is_err();
    if begun.send(outcome).is_ok() && !failed {
        let metrics = member.raft.metrics();
        let following = follow(&member, metrics);
        tokio::select! {
            () = following => {}
            // The sender was dropped.
            _ = stopped => {}
        }
    }
    ending.begin();
    // An error means that it panicked, and so ended.
    let _ = member.raft.shutdown().await;
    member.board.update(|status| status.is_stopped = true);
}

fn open<M: Machine>(
    disk: &Arc<dyn Disk>,
    identity: Identity,
    begin: &Begin,
    initial: M,
    board: &Arc<Board<M>>,
    ending: &Ending,
) -> Result<(LogStore, StateStore<M>), StorageFault> {
    let log = Log::open(Arc::clone(disk), DIR, identity, *begin != Begin::Resume)?;
    let shown = Arc::clone(board);
    let publish = Arc::new(move |committed| shown.publish(committed));
    let state = StateStore::open(Arc::clone(disk), DIR, &log, initial, publish, ending.clone())?;
    Ok((LogStore::new(log, ending.clone()), state))
}

/// Founds the group, or lets a sole voter lead at once.
async fn first_steps<M: Machine>(member: &Member<M>, begin: &Begin) -> Result<(), StartError> {
    let ended = |error: String| StartError::Ended(error);
    let is_initialized = member.raft.is_initialized().await.map_err(|error| ended(error.to_string()))?;
    if let Begin::Found { address } = begin
        && !is_initialized
    {
        let nodes = BTreeMap::from([(member.node, Peer { address: address.clone() })]);
        member.raft.initialize(nodes).await.map_err(|error| ended(error.to_string()))?;
        return Ok(());
    }
    let metrics = member.raft.metrics().borrow().clone();
    let mut voters = metrics.membership_config.voter_ids();
    if voters.next() == Some(member.node) && voters.next().is_none() && metrics.current_leader.is_none() {
        member.raft.trigger().elect().await.map_err(|error| ended(error.to_string()))?;
    }
    Ok(())
}

/// Follows the metrics of openraft until it ends.
async fn follow<M: Machine>(member: &Arc<Member<M>>, mut metrics: watch::Receiver<Metrics>) {
    loop {
        let now = metrics.borrow_and_update().clone();
        let failure = now.running_state.as_ref().err().map(ToString::to_string);
        member.show(&now, failure.clone());
        if failure.is_some() || metrics.changed().await.is_err() {
            return;
        }
        let status = member.board.status();
        let is_sole = status.role == Role::Leader && status.voters.len() == 1 && status.addresses.len() == 1;
        member.pace.pause(is_sole);
        member.tidy(&status).await;
    }
}
