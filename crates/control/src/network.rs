//! openraft's network over a [`Transport`].

use crate::transport::{Answer, Transport};
use crate::types::{Peer, Types, Vote};
use crate::wire::{self, Request, Response};
use openraft::error::{Fatal, RPCError, RaftError, ReplicationClosed, StreamingError, Unreachable};
use openraft::network::{Backoff, RPCOption};
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, VoteRequest, VoteResponse,
};
use openraft::storage::Snapshot;
use openraft::{AnyError, OptionalSend, RaftNetwork, RaftNetworkFactory};
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;
use stead_core::ids::NodeId;

/// Time between two attempts to reach a node.
const PAUSE: Duration = Duration::from_millis(100);

/// Makes the links to other nodes.
#[derive(Clone)]
pub(crate) struct Network {
    pub(crate) transport: Arc<dyn Transport>,
}

impl Network {
    /// Sends a request, and returns its answer, or the reason for which there is none.
    pub(crate) async fn ask(&self, to: u64, address: &str, request: &Request) -> Result<Response, String> {
        let node = u32::try_from(to).map_err(|_| format!("there is no node {to}"))?;
        let (answer, answered) = Answer::new();
        self.transport.request(NodeId(node), address, wire::encode(request), answer);
        let bytes = answered.await.map_err(|_| format!("node {to} at {address} did not answer"))?;
        let invalid = |reason: String| format!("the answer of node {to} is invalid: {reason}");
        let response: Response = wire::decode(&bytes).map_err(invalid)?;
        if response.is_possible() {
            Ok(response)
        } else {
            Err(invalid("a number is over the limit".to_owned()))
        }
    }
}

/// The link to a node.
pub(crate) struct NodeLink {
    network: Network,
    to: u64,
    address: String,
}

impl NodeLink {
    async fn ask(&self, request: &Request) -> Result<Response, Unreachable> {
        self.network.ask(self.to, &self.address, request).await.map_err(unreachable)
    }

    fn unexpected(&self, response: &Response) -> Unreachable {
        unreachable(match response {
            Response::Refused(reason) => format!("node {} refused: {reason}", self.to),
            other => format!("node {} answered with something else: {other:?}", self.to),
        })
    }
}

fn unreachable(reason: String) -> Unreachable {
    Unreachable::new(&AnyError::error(reason))
}

impl RaftNetworkFactory<Types> for Network {
    type Network = NodeLink;

    async fn new_client(&mut self, target: u64, node: &Peer) -> NodeLink {
        NodeLink { network: self.clone(), to: target, address: node.address.clone() }
    }
}

type RpcError = RPCError<u64, Peer, RaftError<u64>>;

impl RaftNetwork<Types> for NodeLink {
    async fn append_entries(
        &mut self,
        request: AppendEntriesRequest<Types>,
        _option: RPCOption,
    ) -> Result<AppendEntriesResponse<u64>, RpcError> {
        let previous = request.prev_log_id;
        let last = request.entries.last().map(|entry| entry.log_id).or(previous);
        let response = self.ask(&request.into()).await?;
        match response.into_appended() {
            // A node that claims more than it was sent would be counted for entries that it does not have.
            Ok(AppendEntriesResponse::PartialSuccess(upto)) if upto < previous || upto > last => {
                Err(unreachable(format!("node {} claims entries that it was not sent", self.to)).into())
            }
            Ok(response) => Ok(response),
            Err(other) => Err(self.unexpected(&other).into()),
        }
    }

    async fn vote(
        &mut self,
        request: VoteRequest<u64>,
        _option: RPCOption,
    ) -> Result<VoteResponse<u64>, RpcError> {
        let response = self.ask(&request.into()).await?;
        Ok(response.into_voted().map_err(|other| self.unexpected(&other))?)
    }

    async fn full_snapshot(
        &mut self,
        vote: Vote,
        snapshot: Snapshot<Types>,
        cancel: impl Future<Output = ReplicationClosed> + OptionalSend + 'static,
        option: RPCOption,
    ) -> Result<SnapshotResponse<u64>, StreamingError<Types, Fatal<u64>>> {
        let request = wire::snapshot_request(vote, &snapshot.meta, snapshot.snapshot.0.to_vec());
        let asked = tokio::time::timeout(option.hard_ttl(), self.ask(&request));
        tokio::select! {
            closed = cancel => Err(closed.into()),
            asked = asked => match asked {
                Ok(Ok(Response::Installed(vote))) => Ok(SnapshotResponse::new(vote.into())),
                Ok(Ok(other)) => Err(self.unexpected(&other).into()),
                Ok(Err(unreachable)) => Err(unreachable.into()),
                Err(_) => Err(unreachable(format!("node {} did not install a snapshot in time", self.to)).into()),
            },
        }
    }

    fn backoff(&self) -> Backoff {
        Backoff::new(std::iter::repeat(PAUSE))
    }
}
