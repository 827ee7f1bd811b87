//! The state of Stead's control plane, as the group folds it.

use crate::machine::Machine;
use crate::plane::Plane;
use crate::proposal::COMMAND_BYTES_MAX;
use stead_core::control::command::InvalidBytes;
use stead_core::control::{Command, ControlState, Outcome};

const _: () = assert!(Command::BYTES_MAX <= COMMAND_BYTES_MAX);

/// The plane of Stead's control plane.
pub type ControlPlane = Plane<ControlState>;

impl Machine for ControlState {
    type Command = Command;
    type Outcome = Outcome;
    type Invalid = InvalidBytes;

    fn apply(&mut self, command: Command) -> Outcome {
        Self::apply(self, command)
    }

    fn encode(&self) -> Vec<u8> {
        Self::encode(self)
    }

    fn decode(bytes: &[u8]) -> Result<Self, InvalidBytes> {
        Self::decode(bytes)
    }

    fn encode_command(command: &Command) -> Vec<u8> {
        command.encode()
    }

    fn decode_command(bytes: &[u8]) -> Result<Command, InvalidBytes> {
        Command::decode(bytes)
    }

    fn encode_outcome(outcome: &Outcome) -> Vec<u8> {
        outcome.encode()
    }

    fn decode_outcome(bytes: &[u8]) -> Result<Outcome, InvalidBytes> {
        Outcome::decode(bytes)
    }
}
