//! A member of the group on the plane's thread: finds the leader, and does what is asked of this node.

use crate::board::{Board, Role, Status};
use crate::encoding::ADDRESS_BYTES_MAX;
use crate::error::{ChangeError, ProposeError, ReadError};
use crate::machine::{Applied, Committed, Machine};
use crate::network::Network;
use crate::pace::Pace;
use crate::proposal::{COMMAND_BYTES_MAX, Proposal, Reply};
use crate::settings::Settings;
use crate::store::LogStore;
use crate::types::{Metrics, Peer, Raft, SnapshotData, SnapshotMeta, Vote};
use crate::wire::{self, Change, Leader, Request, Response};
use openraft::error::{
    ChangeMembershipError, CheckIsLeaderError, ClientWriteError, ForwardToLeader, RaftError,
};
use openraft::storage::Snapshot;
use openraft::{ChangeMembers, EntryPayload, ServerState};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;
use stead_core::ids::NodeId;
use tokio::time::{Instant, sleep, timeout, timeout_at};

/// Maximum number of voters.
pub const VOTERS_MAX: usize = 5;
/// Time for one answer of the node that should lead; then the leader is looked for again.
const ATTEMPT: Duration = Duration::from_secs(1);
/// Time for which this node works on another one's request.
const PATIENCE: Duration = Duration::from_secs(2);
/// Longest pause between two attempts to find the leader.
const PAUSE: Duration = Duration::from_millis(20);
/// Entries by which a learner that becomes a voter may be behind.
const BEHIND_MAX: u64 = 64;

pub(crate) struct Member<M> {
    pub(crate) node: u64,
    pub(crate) raft: Raft,
    pub(crate) network: Network,
    pub(crate) log: LogStore,
    pub(crate) board: Arc<Board<M>>,
    pub(crate) pace: Pace,
    pub(crate) settings: Settings,
    /// The changes of nodes that run at this node.
    pub(crate) changes: AtomicUsize,
    /// The time at which it began.
    pub(crate) begun: Instant,
}

/// The plane of this node has ended.
struct Stopped(Option<String>);

impl<M: Machine> Member<M> {
    pub(crate) async fn propose(
        &self,
        proposal: &Proposal,
        wait: Duration,
    ) -> Result<M::Outcome, ProposeError> {
        let request = Request::Propose(proposal.clone());
        let is_given = AtomicBool::new(false);
        let response = match timeout(wait, self.ask_leader(&request, &is_given)).await {
            Ok(response) => response.map_err(|Stopped(failure)| ProposeError::Stopped(failure))?,
            Err(_) if is_given.into_inner() => return Err(ProposeError::Unknown),
            Err(_) => return Err(ProposeError::NoLeader),
        };
        match response {
            Response::Applied(Reply::Outcome { outcome }) => {
                M::decode_outcome(&outcome).map_err(|error| ProposeError::Invalid(error.to_string()))
            }
            Response::Applied(Reply::Expired) => Err(ProposeError::Expired),
            Response::Full => Err(ProposeError::Full),
            Response::Refused(reason) => Err(ProposeError::Invalid(reason)),
            other => {
                Err(ProposeError::Invalid(format!("the leader answered with something else: {other:?}")))
            }
        }
    }

    pub(crate) async fn read(&self, wait: Duration) -> Result<Committed<M>, ReadError> {
        let reading = async {
            loop {
                let response = self.ask_leader(&Request::Read, &AtomicBool::new(false)).await;
                let response = response.map_err(|Stopped(failure)| ReadError::Stopped(failure))?;
                if let Response::ReadFrom(count) = response {
                    self.board.wait_applied(count).await;
                    return Ok(self.board.committed());
                }
                sleep(PAUSE).await;
            }
        };
        timeout(wait, reading).await.unwrap_or(Err(ReadError::NoAnswer))
    }

    pub(crate) async fn change(&self, change: &Change, wait: Duration) -> Result<(), ChangeError> {
        let request = Request::Change(change.clone());
        let deadline = Instant::now() + wait;
        loop {
            let is_given = AtomicBool::new(false);
            return match timeout_at(deadline, self.ask_leader(&request, &is_given)).await {
                Ok(Ok(Response::Changed)) => Ok(()),
                Ok(Ok(Response::Behind(entries))) => {
                    if Instant::now() + PAUSE < deadline {
                        sleep(PAUSE).await;
                        continue;
                    }
                    Err(ChangeError::Behind { node: change.node(), entries })
                }
                Ok(Ok(Response::Refused(reason))) => Err(ChangeError::Refused(reason)),
                Ok(Ok(other)) => {
                    Err(ChangeError::Refused(format!("the leader answered with something else: {other:?}")))
                }
                Ok(Err(Stopped(failure))) => Err(ChangeError::Stopped(failure)),
                Err(_) if is_given.into_inner() => Err(ChangeError::Unknown),
                Err(_) => Err(ChangeError::NoLeader),
            };
        }
    }

    /// Asks the leader until it answers. `is_given` is set while a request whose answer is unknown may take effect.
    async fn ask_leader(&self, request: &Request, is_given: &AtomicBool) -> Result<Response, Stopped> {
        let mut hint = None;
        for attempt in 0_usize.. {
            let status = self.board.status();
            if status.is_stopped || status.failure.is_some() {
                return Err(Stopped(status.failure));
            }
            let is_hint = hint.is_some();
            let Some(leader) = hint.take().or_else(|| self.leader(attempt)) else {
                self.pause().await;
                continue;
            };
            let was_given = is_given.swap(true, Ordering::Relaxed);
            let response = if leader.node == self.node {
                self.perform(request).await
            } else {
                let asked = self.network.ask(leader.node, &leader.address, request);
                let Ok(Ok(response)) = timeout(ATTEMPT, asked).await else {
                    self.pause().await;
                    continue;
                };
                response
            };
            match response {
                Response::NotLeader(_) | Response::Busy => {}
                Response::Lost => {
                    self.pause().await;
                    continue;
                }
                response => return Ok(response),
            }
            is_given.store(was_given, Ordering::Relaxed);
            match response {
                Response::NotLeader(Some(other)) if !is_hint && other.node != leader.node => {
                    hint = Some(other)
                }
                _ => self.pause().await,
            }
        }
        unreachable!("there is no end of attempts")
    }

    /// Returns the leader, or another voter that may know it.
    fn leader(&self, attempt: usize) -> Option<Leader> {
        let metrics = self.raft.metrics().borrow().clone();
        let membership = metrics.membership_config.membership();
        let others: Vec<_> = membership.voter_ids().filter(|node| *node != self.node).collect();
        let any = || others.get(attempt % others.len().max(1)).copied();
        // A leader that removed itself still leads for a moment.
        let is_known = |node: &u64| *node == self.node || membership.get_node(node).is_some();
        let node = metrics.current_leader.filter(is_known).or_else(any)?;
        let address = membership.get_node(&node).map_or_else(String::new, |peer| peer.address.clone());
        Some(Leader { node, address })
    }

    /// Waits until something may have changed.
    async fn pause(&self) {
        let mut metrics = self.raft.metrics();
        // An error means that it has ended, which the caller looks for.
        let _ = timeout(PAUSE, metrics.changed()).await;
        tokio::task::yield_now().await;
    }

    /// Does what is asked of a leader.
    async fn perform(&self, request: &Request) -> Response {
        match request {
            Request::Propose(proposal) => self.perform_proposal(proposal).await,
            Request::Read => match self.raft.get_read_log_id().await {
                Ok((from, _)) => Response::ReadFrom(from.map_or(0, |from| from.index + 1)),
                Err(RaftError::APIError(CheckIsLeaderError::ForwardToLeader(to))) => not_leader(to),
                Err(_) => Response::Busy,
            },
            Request::Change(change) => {
                self.changes.fetch_add(1, Ordering::Relaxed);
                let response = self.perform_change(change).await;
                self.changes.fetch_sub(1, Ordering::Relaxed);
                response
            }
            Request::Append { .. } | Request::Vote { .. } | Request::Snapshot { .. } => {
                Response::Refused("it is not for the leader".to_owned())
            }
        }
    }

    async fn perform_proposal(&self, proposal: &Proposal) -> Response {
        let bytes = proposal.command.len();
        if bytes > COMMAND_BYTES_MAX {
            return Response::Refused(ProposeError::TooLarge { bytes }.to_string());
        }
        if let Err(error) = M::decode_command(&proposal.command) {
            return Response::Refused(format!("the command does not decode: {error}"));
        }
        if let Some(other) = self.other_leader().await {
            return other;
        }
        if self.log.log().bytes() > self.settings.log_bytes_max {
            return Response::Full;
        }
        // An error may come after the entry was stored here or elsewhere.
        let written = self.raft.client_write(proposal.clone()).await;
        written.map_or(Response::Lost, |written| Response::Applied(written.data))
    }

    /// Returns an answer unless this node leads: nothing was given to openraft then.
    async fn other_leader(&self) -> Option<Response> {
        let leads = self.raft.with_raft_state(|state| state.server_state == ServerState::Leader).await;
        if leads.unwrap_or(false) {
            return None;
        }
        let metrics = self.raft.metrics().borrow().clone();
        let node = metrics.current_leader.filter(|node| *node != self.node);
        let known =
            node.and_then(|node| Some((node, metrics.membership_config.membership().get_node(&node)?)));
        Some(Response::NotLeader(known.map(|(node, peer)| Leader { node, address: peer.address.clone() })))
    }

    async fn perform_change(&self, change: &Change) -> Response {
        if let Some(other) = self.other_leader().await {
            return other;
        }
        let metrics = self.raft.metrics().borrow().clone();
        let membership = metrics.membership_config.membership();
        let joint = membership.get_joint_config();
        let is_voter = |node: u64| joint.iter().all(|voters| voters.contains(&node));
        let node = u64::from(change.node().0);
        let known = membership.get_node(&node);
        let (changes, retain) = match change {
            Change::Place { address, .. } => {
                if address.is_empty() || address.len() > ADDRESS_BYTES_MAX {
                    let reason = format!("an address has 1 to {ADDRESS_BYTES_MAX} bytes");
                    return Response::Refused(reason);
                }
                if known.is_some_and(|peer| peer.address == *address) {
                    return Response::Changed;
                }
                let nodes = BTreeMap::from([(node, Peer { address: address.clone() })]);
                // The transport makes sure that the node at the new address is that node.
                let is_known = known.is_some();
                (if is_known { ChangeMembers::SetNodes(nodes) } else { ChangeMembers::AddNodes(nodes) }, true)
            }
            Change::Promote { .. } => {
                if joint.len() == 1 && is_voter(node) {
                    return Response::Changed;
                }
                if known.is_none() {
                    return Response::Refused(format!("node {node} is not one of them; place it first"));
                }
                if joint.iter().any(|voters| !voters.contains(&node) && voters.len() >= VOTERS_MAX) {
                    return Response::Refused(format!("there are {VOTERS_MAX} voters, which is the limit"));
                }
                let stored =
                    metrics.replication.as_ref().and_then(|stored| stored.get(&node).copied().flatten());
                let stored = stored.map_or(0, |stored| stored.index + 1);
                let entries = metrics.last_log_index.map_or(0, |last| last + 1);
                let is_leader = metrics.state == ServerState::Leader;
                let behind = entries.saturating_sub(stored);
                // One that has never answered may not be there at all: with it as a voter, nothing more might be agreed on.
                if is_leader && node != self.node && (stored == 0 || behind > BEHIND_MAX) {
                    return Response::Behind(behind);
                }
                (ChangeMembers::AddVoterIds(BTreeSet::from([node])), true)
            }
            Change::Remove { .. } => {
                if known.is_none() {
                    return Response::Changed;
                }
                let nodes = BTreeSet::from([node]);
                if !joint.iter().any(|voters| voters.contains(&node)) {
                    (ChangeMembers::RemoveNodes(nodes), true)
                } else if joint.iter().any(|voters| voters.len() == 1 && voters.contains(&node)) {
                    return Response::Refused(format!("node {node} is the only voter"));
                } else {
                    (ChangeMembers::RemoveVoters(nodes), false)
                }
            }
        };
        self.pace.pause(false);
        match self.raft.change_membership(changes, retain).await {
            Ok(_) => Response::Changed,
            Err(RaftError::APIError(ClientWriteError::ChangeMembershipError(error))) => match error {
                ChangeMembershipError::InProgress(_) => Response::Busy,
                other => Response::Refused(other.to_string()),
            },
            // It may come after the first of two steps.
            Err(_) => Response::Lost,
        }
    }

    /// Takes another node's request, and returns the answer.
    pub(crate) async fn receive(&self, from: NodeId, bytes: &[u8]) -> Vec<u8> {
        let response = match wire::decode::<Request>(bytes) {
            Err(reason) => Response::Refused(format!("the request is invalid: {reason}")),
            Ok(request) if !request.is_possible() => {
                Response::Refused("the request is invalid: a number is over the limit".to_owned())
            }
            Ok(request) if request.sender().is_some_and(|sender| sender != u64::from(from.0)) => {
                Response::Refused(format!("node {from} speaks for another node"))
            }
            Ok(request) => self.answer(request).await,
        };
        wire::encode(&response)
    }

    async fn answer(&self, request: Request) -> Response {
        match request {
            Request::Append { vote, previous, entries, committed } => {
                let Some(request) = wire::append_request(vote, previous, entries, committed) else {
                    return Response::Refused("its entries do not follow each other".to_owned());
                };
                for entry in &request.entries {
                    if let EntryPayload::Normal(proposal) = &entry.payload
                        && let Err(error) = M::decode_command(&proposal.command)
                    {
                        let reason =
                            format!("the command of entry {} does not decode: {error}", entry.log_id);
                        return Response::Refused(reason);
                    }
                }
                self.raft.append_entries(request).await.map_or_else(|error| refused(&error), Response::from)
            }
            // Its files may be an older copy of what it acknowledged: a leader that runs brings it up to date before that matters.
            Request::Vote { .. } if self.begun.elapsed() < self.settings.election_min => {
                Response::Refused("it has just started, and listens for a leader first".to_owned())
            }
            Request::Vote { vote, last } => {
                let request = openraft::raft::VoteRequest::new(vote.into(), last.map(Into::into));
                self.raft.vote(request).await.map_or_else(|error| refused(&error), Response::from)
            }
            Request::Snapshot { vote, meta, state } => self.install(vote.into(), meta.into(), state).await,
            request => timeout(PATIENCE, self.perform(&request)).await.unwrap_or(Response::Lost),
        }
    }

    async fn install(&self, vote: Vote, meta: SnapshotMeta, state: Vec<u8>) -> Response {
        if let Err(reason) = Applied::<M>::restore(&meta, &state) {
            return Response::Refused(format!("the snapshot is invalid: {reason}"));
        }
        let snapshot = Snapshot { meta, snapshot: Box::new(SnapshotData(Arc::new(state))) };
        let installed = self.raft.install_full_snapshot(vote, snapshot).await;
        installed.map_or_else(|error| refused(&error), |response| Response::Installed(response.vote.into()))
    }

    /// Shows openraft's metrics on the board.
    pub(crate) fn show(&self, metrics: &Metrics, failure: Option<String>) {
        let membership = metrics.membership_config.membership();
        let voters: BTreeSet<_> = membership.voter_ids().collect();
        let count = |index: Option<u64>| index.map_or(0, |index| index + 1);
        self.board.update(|status| {
            status.role = match metrics.state {
                ServerState::Leader => Role::Leader,
                ServerState::Follower => Role::Follower,
                ServerState::Candidate => Role::Candidate,
                ServerState::Learner | ServerState::Shutdown => Role::Learner,
            };
            status.leader = metrics.current_leader.map(node_id);
            status.term = metrics.current_term;
            status.voters = voters.iter().copied().map(node_id).collect();
            status.learners = membership.learner_ids().map(node_id).collect();
            let peers = membership.nodes();
            status.addresses = peers.map(|(node, peer)| (node_id(*node), peer.address.clone())).collect();
            status.is_changing = membership.get_joint_config().len() > 1;
            status.entries = count(metrics.last_log_index);
            status.applied = count(metrics.last_applied.map(|last| last.index));
            status.snapshot = count(metrics.snapshot.map(|last| last.index));
            let stored = metrics.replication.iter().flatten().filter(|(node, _)| **node != self.node);
            status.stored =
                stored.map(|(node, last)| (node_id(*node), count(last.map(|last| last.index)))).collect();
            if failure.is_some() {
                (status.failure, status.leader) = (failure, None);
            }
        });
    }

    /// Keeps the log short, and ends a change of voters that a former leader began.
    pub(crate) async fn tidy(self: &Arc<Self>, status: &Status) {
        if self.log.log().bytes() > self.settings.snapshot_bytes {
            let trigger = self.raft.trigger();
            // An error means that it has ended, which the metrics say.
            let _ = match status.snapshot.checked_sub(1) {
                Some(last) if status.snapshot == status.applied => trigger.purge_log(last).await,
                _ => trigger.snapshot().await,
            };
        }
        if status.role == Role::Leader && status.is_changing && self.changes.load(Ordering::Relaxed) == 0 {
            let member = Arc::clone(self);
            self.changes.fetch_add(1, Ordering::Relaxed);
            tokio::spawn(async move {
                let metrics = member.raft.metrics().borrow().clone();
                let joint = metrics.membership_config.membership().get_joint_config();
                if let Some(voters) = joint.last().filter(|_| joint.len() > 1) {
                    // If it does not succeed, the next look at the metrics tries again.
                    let _ = member.raft.change_membership(voters.clone(), true).await;
                }
                member.changes.fetch_sub(1, Ordering::Relaxed);
            });
        }
    }
}

fn node_id(node: u64) -> NodeId {
    NodeId(u32::try_from(node).unwrap_or(u32::MAX))
}

fn not_leader(to: ForwardToLeader<u64, Peer>) -> Response {
    let leader = to.leader_id.zip(to.leader_node);
    Response::NotLeader(leader.map(|(node, peer)| Leader { node, address: peer.address }))
}

fn refused(error: &impl std::fmt::Display) -> Response {
    Response::Refused(format!("the control plane of that node has ended: {error}"))
}
