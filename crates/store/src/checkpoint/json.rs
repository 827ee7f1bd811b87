//! The form of numbers and hashes in JSON.

use serde::{Deserialize, Serialize};
pub use stead_core::checkpointing::bundle::Hash;
use stead_core::ids::{Epoch, Incarnation, Index, ShardId, Time};

// The core knows no JSON, so its numbers are described here.
macro_rules! number {
    ($name:ident as $core:literal is $inner:ty) => {
        #[derive(Serialize, Deserialize)]
        #[serde(remote = $core)]
        pub(crate) struct $name(pub $inner);
    };
}

number!(ShardNumber as "ShardId" is u32);
number!(EpochNumber as "Epoch" is u64);
number!(IndexNumber as "Index" is u64);
number!(IncarnationNumber as "Incarnation" is u64);
number!(Micros as "Time" is u64);
