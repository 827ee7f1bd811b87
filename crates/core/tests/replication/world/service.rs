//! The service: lists of numbers.

use stead_core::blob::Blob;
use stead_core::calls::{Call, Caller, Outcome, Refusal};
use stead_core::capture::View;
use stead_core::handler::{Handler, QueryPlace, Txn};
use stead_core::key::Key;
use stead_core::record::RecordKey;
use stead_core::reply::Reply;
use stead_core::shard_replica::Watched;
use stead_core::state::State;

/// Appends the caller's number to the state of its process, and answers with the number's position. Every third request has the
/// process `b` do the same by a message.
pub(crate) struct Lister;

pub(super) fn numbers(state: Option<&[u8]>) -> Vec<u32> {
    let bytes = state.unwrap_or_default();
    bytes.chunks(4).map(|four| u32::from_be_bytes(four.try_into().unwrap())).collect()
}

impl Handler for Lister {
    fn handle(&mut self, call: &Call<'_>, txn: &mut Txn<'_>) -> Outcome {
        let mut state = txn.state().map_or_else(Vec::new, |state| state.to_vec());
        state.extend_from_slice(call.payload);
        let count = (state.len() / 4) as u32;
        txn.put_state(Blob::from(state)).unwrap();
        let number = u32::from_be_bytes(call.payload.try_into().unwrap());
        if matches!(call.caller, Caller::Client { .. }) && number.is_multiple_of(3) {
            txn.send("list", Key::new("b").unwrap(), Blob::from(call.payload)).unwrap();
        }
        Outcome::Replied(Reply::Ok(Blob::from(count.to_be_bytes().as_slice())))
    }

    fn query(&mut self, _: &Call<'_>, view: View<'_>) -> Outcome {
        let count = view.state().map_or(0, |state| state.len() / 4) as u32;
        Outcome::Replied(Reply::Ok(Blob::from(count.to_be_bytes().as_slice())))
    }

    fn place_query(&mut self, _: &Call<'_>, state: Option<&Blob>) -> Result<QueryPlace, Refusal> {
        let is_even = state.is_none_or(|state| (state.len() / 4).is_multiple_of(2));
        Ok(if is_even { QueryPlace::Here } else { QueryPlace::Apart })
    }
}

impl Watched for Lister {}

pub(super) fn list(state: &State, key: &str) -> Vec<u32> {
    numbers(state.records().get(RecordKey::process(key).as_bytes()).map(|value| &**value))
}
