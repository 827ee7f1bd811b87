//! A machine whose state is the list of all commands, so that one that is applied twice or lost is seen.

use crate::Machine;
use minicbor::{Decode, Encode};

#[derive(Clone, Debug, Default, PartialEq, Eq, Encode, Decode)]
pub(crate) struct Ledger {
    #[n(0)]
    pub(crate) commands: Vec<String>,
}

impl Ledger {
    pub(crate) fn count(&self, command: &str) -> usize {
        self.commands.iter().filter(|other| *other == command).count()
    }
}

impl Machine for Ledger {
    type Command = String;
    /// The number of commands then.
    type Outcome = u64;
    type Invalid = minicbor::decode::Error;

    fn apply(&mut self, command: String) -> u64 {
        self.commands.push(command);
        self.commands.len() as u64
    }

    fn encode(&self) -> Vec<u8> {
        minicbor::to_vec(self).unwrap()
    }

    fn decode(bytes: &[u8]) -> Result<Self, Self::Invalid> {
        minicbor::decode(bytes)
    }

    fn encode_command(command: &String) -> Vec<u8> {
        minicbor::to_vec(command).unwrap()
    }

    fn decode_command(bytes: &[u8]) -> Result<String, Self::Invalid> {
        minicbor::decode(bytes)
    }

    fn encode_outcome(outcome: &u64) -> Vec<u8> {
        minicbor::to_vec(outcome).unwrap()
    }

    fn decode_outcome(bytes: &[u8]) -> Result<u64, Self::Invalid> {
        minicbor::decode(bytes)
    }
}
