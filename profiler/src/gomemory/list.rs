//! The runtime's list of goroutines, some at a time, while the program goes on. A
//! list that cannot be one is left as soon as that shows.

use super::{
    goroutines::{GoroutineBatch, parse, struct_bytes},
    once::Once,
    pieces::Pieces,
    program::Program,
};
use crate::gobinary::{AllGoroutines, ListOffsets, StructOffsets};

/// Most goroutines that are looked at.
pub const MAX_GOROUTINES: u64 = 1 << 22;
/// More goroutines than a program can have.
const MAX_COUNT: u64 = 1 << 32;
/// Goroutines of a batch.
const BATCH: u64 = 1024;
/// Goroutines that may make no sense before it is asked whether most do.
const TOLERATED: u64 = 64;
/// How often a part of the list is read before it is taken to make no sense: it
/// moves when it grows.
const ATTEMPTS: usize = 8;
/// Why a list cannot be had that is not as it must be.
const NO_SENSE: &str = "the list of its goroutines makes no sense";

/// What became of the list.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Listing {
    /// How many places the list has: goroutines that are alive, and those that
    /// the runtime keeps for later.
    pub listed: u64,
    /// Goroutines that are alive.
    pub alive: u64,
    /// Goroutines that could not be read.
    pub unreadable: u64,
    /// Goroutines that make no sense.
    pub nonsense: u64,
    /// Places that were not looked at: there are more than goprof reads.
    pub cut: u64,
}

impl Program<'_> {
    /// What lists of goroutines need besides what samples do.
    ///
    /// # Errors
    /// Its version is not known, and its DWARF lacks some of it; says what.
    pub fn lists<'o>(&self, offsets: &'o StructOffsets) -> Result<&'o ListOffsets, String> {
        let version = self.binary.version();
        let lacks = |unlike| format!("goprof does not know {version}, and {unlike}");
        offsets.lists.as_ref().map_err(lacks)
    }

    /// How many places the list of goroutines has, and so how many there are at most.
    ///
    /// # Errors
    /// The list is not there, or makes no sense; says why.
    pub fn goroutines_listed(&self) -> Result<u64, String> {
        let count = self.list_of_goroutines()?.count;
        let listed = self.memory.word(count).filter(|n| *n <= MAX_COUNT);
        listed.ok_or_else(|| NO_SENSE.to_owned())
    }

    /// Where the list is.
    fn list_of_goroutines(&self) -> Result<AllGoroutines, String> {
        let Some(list) = self.variables.all_goroutines else {
            return Err("its runtime.allgadd does not say where its goroutines are".to_owned());
        };
        Ok(AllGoroutines {
            array: self.address(list.array),
            count: self.address(list.count),
        })
    }

    /// Calls `each` with the goroutines that are alive, some at a time.
    ///
    /// # Errors
    /// The list of goroutines is not there, or makes no sense; says why.
    pub fn for_each_goroutine(
        &self,
        offsets: &StructOffsets,
        each: impl FnMut(&GoroutineBatch<'_>),
    ) -> Result<Listing, String> {
        self.for_first_goroutines(MAX_GOROUTINES, offsets, each)
    }

    /// The same for the first places of the list alone, where there is no room for
    /// more: at most so many of them.
    ///
    /// # Errors
    /// As for [`Program::for_each_goroutine`].
    pub fn for_first_goroutines(
        &self,
        most: u64,
        offsets: &StructOffsets,
        mut each: impl FnMut(&GoroutineBatch<'_>),
    ) -> Result<Listing, String> {
        let most = most.min(MAX_GOROUTINES);
        let lists = self.lists(offsets)?;
        let array = self.list_of_goroutines()?.array;
        // The count first: the array never has room for fewer.
        let listed = self.goroutines_listed()?;
        let (mut places_once, mut ids_once) = (Once::default(), Once::default());
        let mut listing = Listing {
            listed,
            cut: listed.saturating_sub(most),
            ..Listing::default()
        };
        let end = listed.min(most);
        let mut first = 0;
        while first < end {
            let places = (end - first).min(BATCH);
            let Some(pointers) = self.pointers(array, first, places) else {
                return Err("the list of its goroutines cannot be read".to_owned());
            };
            // Each has its place for ever. One struct again and again would cost as
            // much as a list without an end.
            if !pointers.iter().all(|pointer| places_once.is_new(*pointer)) {
                return Err(NO_SENSE.to_owned());
            }
            let batch = self.read_goroutines(&pointers, (offsets, lists), &mut listing);
            let bad = listing.nonsense + listing.unreadable;
            let mut ids = batch.goroutines.iter().map(|goroutine| goroutine.goid);
            let mostly_bad = bad > TOLERATED && bad * 2 > first + places;
            // The same memory may be mapped many times.
            if mostly_bad || !ids.all(|id| ids_once.is_new(id)) {
                return Err(NO_SENSE.to_owned());
            }
            each(&batch);
            first += places;
        }
        Ok(listing)
    }

    /// Goroutines at random places of the list, as many as `most`, or all where there
    /// are no more; and how many of the list each stands for. `below` gives a random number
    /// below another.
    ///
    /// # Errors
    /// As for [`Program::for_each_goroutine`].
    pub fn some_goroutines<'o>(
        &self,
        offsets: &'o StructOffsets,
        most: u64,
        mut below: impl FnMut(u64) -> u64,
    ) -> Result<(GoroutineBatch<'o>, f64), String> {
        let unreadable = || "the list of its goroutines cannot be read".to_owned();
        let lists = self.lists(offsets)?;
        let array = self.list_of_goroutines()?.array;
        let listed = self.goroutines_listed()?;
        let places: Vec<u64> = match listed <= most {
            true => (0..listed).collect(),
            false => {
                let mut chosen = std::collections::BTreeSet::new();
                // Some come twice.
                for _ in 0..most {
                    chosen.insert(below(listed));
                }
                chosen.into_iter().collect()
            }
        };
        for _ in 0..ATTEMPTS {
            let before = self.memory.word(array).ok_or_else(unreadable)?;
            let at = places.iter().map(|place| before.wrapping_add(place * 8));
            let pieces = Pieces::read(self.memory, &at.collect::<Vec<_>>(), 8);
            // An array that the list has left behind may be used for other things.
            if self.memory.word(array) != Some(before) {
                continue;
            }
            let words = (0..places.len()).filter_map(|index| pieces.get(index));
            let words = words.filter_map(|bytes| bytes.first_chunk().copied());
            let pointers: Vec<u64> = words.map(u64::from_le_bytes).collect();
            let of = (offsets, lists);
            let batch = self.read_goroutines(&pointers, of, &mut Listing::default());
            // What each that was looked at stands for.
            let share = listed as f64 / places.len().max(1) as f64;
            return Ok((batch, share));
        }
        Err(unreadable())
    }

    /// Some of the pointers of an array whose address is at `array`.
    fn pointers(&self, array: u64, first: u64, places: u64) -> Option<Vec<u64>> {
        let mut bytes = vec![0; usize::try_from(places * 8).ok()?];
        for _ in 0..ATTEMPTS {
            let before = self.memory.word(array)?;
            let read = self.memory.read(before.wrapping_add(first * 8), &mut bytes);
            // An array that the list has left behind may be used for other things.
            if read && self.memory.word(array) == Some(before) {
                let words = bytes.as_chunks().0.iter();
                return Some(words.map(|word| u64::from_le_bytes(*word)).collect());
            }
        }
        None
    }

    /// Some goroutines once more, by where their structs are; those that are alive,
    /// and what could not be had.
    pub fn goroutines_at<'o>(
        &self,
        addresses: &[u64],
        offsets: &'o StructOffsets,
    ) -> (GoroutineBatch<'o>, Listing) {
        let mut listing = Listing::default();
        let batch = match &offsets.lists {
            Ok(lists) => self.read_goroutines(addresses, (offsets, lists), &mut listing),
            Err(_) => {
                listing.unreadable = addresses.len() as u64;
                let goroutines = Vec::new();
                GoroutineBatch {
                    goroutines,
                    offsets,
                }
            }
        };
        (batch, listing)
    }

    fn read_goroutines<'o>(
        &self,
        pointers: &[u64],
        (offsets, lists): (&'o StructOffsets, &ListOffsets),
        listing: &mut Listing,
    ) -> GoroutineBatch<'o> {
        let pieces = Pieces::read(self.memory, pointers, struct_bytes(offsets, lists));
        let mut goroutines = Vec::new();
        for (index, address) in pointers.iter().enumerate() {
            let Some(bytes) = pieces.get(index) else {
                listing.unreadable += 1;
                continue;
            };
            match parse(*address, bytes, (offsets, lists)) {
                Some(goroutine) if goroutine.status.is_alive() => {
                    listing.alive += 1;
                    goroutines.push(goroutine);
                }
                Some(_) => {}
                None => listing.nonsense += 1,
            }
        }
        GoroutineBatch {
            goroutines,
            offsets,
        }
    }
}
