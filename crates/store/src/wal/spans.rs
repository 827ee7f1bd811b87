//! The places of each shard's entries in the log's segments: for trimming, and to find an entry without reading the
//! other segments.

use super::batch::{DENSE, ShardTops};
use super::frame::Position;
use std::collections::{BTreeMap, VecDeque};
use stead_core::ids::{Index, ShardId};

/// Minimum bytes of a segment between two waypoints of a shard: as many as are read at once.
const WAYPOINT_BYTES: u64 = 1 << 20;
/// Minimum bytes of a segment for each waypoint, however many shards have entries there: waypoints take at most a 256th
/// of the log in memory.
const BYTES_PER_WAYPOINT: u64 = 256 * size_of::<Waypoint>() as u64;

/// A shard's entries in one segment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Span {
    /// The highest index, also of entries that are void.
    pub(crate) top: Index,
    /// The first batch that holds one; 0 if there is none.
    batch: u64,
    /// The position of that batch in the segment.
    offset: u64,
    /// The position of the batch of the last waypoint, or of the first entry without waypoints.
    marked: u64,
}

/// A batch from which a reader can begin that needs no entry of a shard below an index.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Waypoint {
    shard: ShardId,
    /// The highest index of the shard in the segment before the batch.
    before: Index,
    batch: u64,
    offset: u64,
}

/// The entries of all shards in one segment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct ShardSpans {
    dense: Vec<Span>,
    sparse: BTreeMap<ShardId, Span>,
    /// Number of shards that have entries.
    shards: u64,
    /// The waypoints, in the order of the log.
    waypoints: Vec<Waypoint>,
}

impl ShardSpans {
    /// Adds an entry of a shard, in the batch of this number at this offset.
    #[inline]
    pub(crate) fn raise(&mut self, shard: ShardId, index: Index, (batch, offset): (u64, u64)) {
        let span = if shard.0 < DENSE {
            let at = shard.0 as usize;
            if at >= self.dense.len() {
                self.dense.resize(at + 1, Span::default());
            }
            &mut self.dense[at]
        } else {
            self.sparse.entry(shard).or_default()
        };
        if span.batch == 0 {
            (span.batch, span.offset, span.marked) = (batch, offset, offset);
            self.shards += 1;
        } else if offset - span.marked >= WAYPOINT_BYTES
            && offset - span.marked >= self.shards * BYTES_PER_WAYPOINT
        {
            span.marked = offset;
            self.waypoints.push(Waypoint { shard, before: span.top, batch, offset });
        }
        span.top = span.top.max(index);
    }

    pub(crate) fn merge(&mut self, tops: &ShardTops, at: (u64, u64)) {
        for (shard, top) in tops.iter() {
            self.raise(shard, top, at);
        }
    }

    /// Returns the highest index of each shard that has entries here.
    pub(crate) fn tops(&self) -> impl Iterator<Item = (ShardId, Index)> + '_ {
        let dense = (0..).map(ShardId).zip(&self.dense);
        let all = dense.chain(self.sparse.iter().map(|(shard, span)| (*shard, span)));
        all.filter(|(_, span)| span.batch > 0).map(|(shard, span)| (shard, span.top))
    }

    /// Returns the last known batch before which no entry of the shard is at `from` or above, and its position; `None`
    /// if no entry here is.
    fn find(&self, shard: ShardId, from: Index) -> Option<(u64, u64)> {
        let span = if shard.0 < DENSE { self.dense.get(shard.0 as usize) } else { self.sparse.get(&shard) };
        let span = span.filter(|span| span.batch > 0 && span.top >= from)?;
        let is_fit = |waypoint: &&Waypoint| waypoint.shard == shard && waypoint.before < from;
        let waypoint = self.waypoints.iter().rev().find(is_fit);
        Some(waypoint.map_or((span.batch, span.offset), |waypoint| (waypoint.batch, waypoint.offset)))
    }
}

/// A segment with the places of its entries.
#[derive(Debug)]
pub(crate) struct SegmentSpans {
    pub(crate) id: u64,
    /// Its last batch, durable or not; 0 before the first.
    pub(crate) last: u64,
    pub(crate) shards: ShardSpans,
}

/// Returns the last batch of a segment; `None` if the log has released it.
pub(crate) fn last_batch(segments: &VecDeque<SegmentSpans>, segment: u64) -> Option<u64> {
    let at = segments.binary_search_by_key(&segment, |spans| spans.id).ok()?;
    Some(segments[at].last)
}

/// Finds a batch, in this segment or a later one, from which all entries of the shard at `from` or above can be read.
pub(crate) fn find(
    segments: &VecDeque<SegmentSpans>,
    segment: u64,
    shard: ShardId,
    from: Index,
) -> Option<Position> {
    let begin = segments.partition_point(|spans| spans.id < segment);
    segments.range(begin..).find_map(|SegmentSpans { id, shards, .. }| {
        let (batch, offset) = shards.find(shard, from)?;
        Some(Position { batch, segment: *id, offset })
    })
}
