//! Where each shard's entries stand in the log's segments: for trimming, and to find one without reading the others.

use super::Position;
use super::batch::{DENSE, ShardTops};
use std::collections::{BTreeMap, VecDeque};
use stead_core::ids::{Index, ShardId};

/// A shard's entries in one segment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Span {
    /// The highest index, also of entries that are void.
    pub(crate) top: Index,
    /// The first batch that holds one; 0 if there is none.
    batch: u64,
    /// Where that batch begins in the segment.
    offset: u64,
}

/// The entries of all shards in one segment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct ShardSpans {
    dense: Vec<Span>,
    sparse: BTreeMap<ShardId, Span>,
}

impl ShardSpans {
    /// A batch of this number at this offset holds an entry of the shard.
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
            (span.batch, span.offset) = (batch, offset);
        }
        span.top = span.top.max(index);
    }

    pub(crate) fn merge(&mut self, tops: &ShardTops, at: (u64, u64)) {
        for (shard, top) in tops.iter() {
            self.raise(shard, top, at);
        }
    }

    /// The highest index of each shard that has entries here.
    pub(crate) fn tops(&self) -> impl Iterator<Item = (ShardId, Index)> + '_ {
        let dense = (0..).map(ShardId).zip(&self.dense);
        let all = dense.chain(self.sparse.iter().map(|(shard, span)| (*shard, span)));
        all.filter(|(_, span)| span.batch > 0).map(|(shard, span)| (shard, span.top))
    }

    fn get(&self, shard: ShardId) -> Option<&Span> {
        let span = if shard.0 < DENSE { self.dense.get(shard.0 as usize) } else { self.sparse.get(&shard) };
        span.filter(|span| span.batch > 0)
    }
}

/// A segment with what it holds.
#[derive(Debug)]
pub(crate) struct SegmentSpans {
    pub(crate) id: u64,
    pub(crate) shards: ShardSpans,
}

/// Finds the first batch, in this segment or a later one, that may hold an entry of the shard at `from` or above.
pub(crate) fn find(
    segments: &VecDeque<SegmentSpans>,
    segment: u64,
    shard: ShardId,
    from: Index,
) -> Option<Position> {
    let begin = segments.partition_point(|spans| spans.id < segment);
    segments.range(begin..).find_map(|SegmentSpans { id, shards }| {
        let span = shards.get(shard).filter(|span| span.top >= from)?;
        Some(Position { batch: span.batch, segment: *id, offset: span.offset })
    })
}
