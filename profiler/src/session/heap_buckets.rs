//! From the buckets of a program's own heap profile to the values of a window.

use std::collections::HashMap;

use crate::{
    aggregate::{Owner, Window},
    gobinary::{AllocationSites, Blocks, unsample},
    gomemory::{Bucket, HeapProfile, Program},
    process::ProcessIndex,
    symbolize::Event,
};

/// Adds the buckets of a process, and says of how many the type is known.
pub(super) fn add_buckets(
    event: Event,
    index: ProcessIndex,
    program: &Program<'_>,
    (now, before): (&HeapProfile, Option<&HeapProfile>),
    window: &mut Window,
) -> usize {
    let sites = program.binary.allocation_sites();
    let old: HashMap<u64, &Bucket> = before
        .into_iter()
        .flat_map(|before| &before.buckets)
        .map(|bucket| (bucket.address, bucket))
        .collect();
    let collected = has_collected(now);
    let mut typed = 0;
    for bucket in &now.buckets {
        let values = match event {
            Event::Heap => {
                // Before the first collection Go shows all there is.
                let counts = bucket.counts;
                let blocks = if collected { counts.active } else { counts.all };
                values((blocks.allocs as i64, in_use(blocks)), bucket, now.rate)
            }
            _ => {
                let old = old.get(&bucket.address).map(|old| old.counts);
                let old = old.unwrap_or_default();
                let allocs = bucket.counts.all.allocs.saturating_sub(old.all.allocs);
                let in_use = in_use(bucket.counts.active) - in_use(old.active);
                values((allocs as i64, in_use), bucket, now.rate)
            }
        };
        if values == [0; 4] {
            continue;
        }
        let kind = type_of(program, &sites, bucket);
        typed += usize::from(kind.is_some());
        let owner = Owner {
            process: index,
            labels: kind
                .map(|kind| ("type".to_owned(), kind))
                .into_iter()
                .collect(),
            block_bytes: Some(bucket.size_bytes),
            ..Owner::default()
        };
        window.add_values(owner, &program.physical(&bucket.stack), 0, values);
    }
    typed
}

/// Whether a collection has ended since the profile began: else Go counts nothing
/// as of the last one.
fn has_collected(profile: &HeapProfile) -> bool {
    let counts = profile.buckets.iter().map(|bucket| bucket.counts.active);
    counts.into_iter().any(|blocks| blocks != Blocks::default())
}

/// Blocks that were allocated and not freed.
fn in_use(blocks: Blocks) -> i64 {
    blocks.allocs as i64 - blocks.frees as i64
}

/// What sampled blocks stand for: allocated and in use, each in objects and bytes.
fn values((allocs, in_use): (i64, i64), bucket: &Bucket, rate: u64) -> [i64; 4] {
    let (alloc_objects, alloc_bytes) = unsample(allocs, bucket.size_bytes, rate);
    let (in_use_objects, in_use_bytes) = unsample(in_use, bucket.size_bytes, rate);
    [alloc_objects, alloc_bytes, in_use_objects, in_use_bytes]
}

/// The type that a bucket's stack allocates, where the code says it.
fn type_of(program: &Program<'_>, sites: &AllocationSites, bucket: &Bucket) -> Option<String> {
    let call = program.allocating_call(&bucket.stack)?;
    sites.type_at(program.binary, program.vaddr(call))
}
