//! Messages to other nodes and from them: `part.rs` has the connections, and `packing.rs` puts messages into frames. Workers leave
//! messages at the [`PeerDesk`]; the part that has the connections takes them, and a simulator does in its place. `lent.rs` lets a worker
//! give that part its turns. What arrives goes to the workers by [`Shared::from_peer`](crate::Shared::from_peer).

mod desk;
mod lent;
mod packing;
mod part;
#[cfg(test)]
mod tests;

pub use desk::{PeerDesk, PeerMessage};
pub(crate) use lent::{Borrowed, Relief, lend};
pub use part::PeerPart;
