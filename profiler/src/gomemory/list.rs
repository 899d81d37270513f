//! The runtime's list of goroutines, some at a time, while the program goes on. A
//! list that cannot be one is left as soon as that shows.

use super::{
    draw::Draw,
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
/// Goroutines of a batch: few, so that what is read of one is of nearly one moment, and
/// all of it near in the processor's caches.
const BATCH: usize = 256;
/// Places of the list that are read at once.
const PLACES: u64 = 1024;
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
    /// Places that were not looked at, and that no other stands for: there are more
    /// than goprof reads.
    pub cut: u64,
    /// Places that were looked at.
    pub looked_at: u64,
}

/// How many goroutines are looked at where there are many.
#[derive(Debug, Clone, Copy)]
pub struct Few {
    /// Those that are alive, as many as this or some more.
    pub alive: u64,
    /// Places of the list at most: others may have ended in most of them.
    pub places: u64,
}

/// A list that is being read.
struct Reading<'o> {
    offsets: &'o StructOffsets,
    lists: &'o ListOffsets,
    /// Where the list's array is.
    array: u64,
    places_once: Once,
    ids_once: Once,
    listing: Listing,
}

impl Listing {
    /// How many goroutines each of those that were looked at stands for.
    pub fn stands_for(&self) -> f64 {
        match self.looked_at {
            0 => 1.0,
            looked_at => self.listed.saturating_sub(self.cut) as f64 / looked_at as f64,
        }
    }
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
        let mut reading = self.begin_reading(offsets)?;
        let end = reading.listing.listed.min(most).min(MAX_GOROUTINES);
        reading.listing.cut = reading.listing.listed - end;
        while reading.listing.looked_at < end {
            let first = reading.listing.looked_at;
            let places: Vec<u64> = (first..end.min(first + PLACES)).collect();
            self.read_next(&mut reading, &places, &mut |batch| each(&batch))?;
        }
        Ok(reading.listing)
    }

    /// Calls `each` with goroutines at random places of the list, or with all where no
    /// more are listed than it takes; each stands for [`Listing::stands_for`]. `below`
    /// gives a random number below another.
    ///
    /// That it goes on until enough are alive has them stand for too many, by less than
    /// one in a thousand.
    ///
    /// # Errors
    /// As for [`Program::for_each_goroutine`].
    pub fn for_some_goroutines<'o>(
        &self,
        few: Few,
        offsets: &'o StructOffsets,
        mut below: impl FnMut(u64) -> u64,
        mut each: impl FnMut(GoroutineBatch<'o>),
    ) -> Result<Listing, String> {
        let mut reading = self.begin_reading(offsets)?;
        let listed = reading.listing.listed;
        let is_all = listed <= few.alive.min(few.places);
        let end = listed.min(few.places);
        let mut draw = Draw::of(listed);
        while reading.listing.looked_at < end && (is_all || reading.listing.alive < few.alive) {
            let first = reading.listing.looked_at;
            let places = match is_all {
                true => (first..end.min(first + PLACES)).collect(),
                false => draw.next((BATCH as u64).min(end - first), &mut below),
            };
            self.read_next(&mut reading, &places, &mut each)?;
        }
        Ok(reading.listing)
    }

    fn begin_reading<'o>(&self, offsets: &'o StructOffsets) -> Result<Reading<'o>, String> {
        let lists = self.lists(offsets)?;
        let array = self.list_of_goroutines()?.array;
        // The count first: the array never has room for fewer.
        let listed = self.goroutines_listed()?;
        Ok(Reading {
            offsets,
            lists,
            array,
            places_once: Once::default(),
            ids_once: Once::default(),
            listing: Listing {
                listed,
                ..Listing::default()
            },
        })
    }

    /// Calls `each` with those at some places that are alive.
    fn read_next<'o>(
        &self,
        reading: &mut Reading<'o>,
        places: &[u64],
        each: &mut impl FnMut(GoroutineBatch<'o>),
    ) -> Result<(), String> {
        let Some(pointers) = self.pointers(reading.array, places) else {
            return Err("the list of its goroutines cannot be read".to_owned());
        };
        for pointers in pointers.chunks(BATCH) {
            // Each has its place for ever. One struct again and again would cost as
            // much as a list without an end.
            let places_once = &mut reading.places_once;
            if !pointers.iter().all(|pointer| places_once.is_new(*pointer)) {
                return Err(NO_SENSE.to_owned());
            }
            let of = (reading.offsets, reading.lists);
            let batch = self.read_goroutines(pointers, of, &mut reading.listing);
            reading.listing.looked_at += pointers.len() as u64;
            let bad = reading.listing.nonsense + reading.listing.unreadable;
            let mostly_bad = bad > TOLERATED && bad * 2 > reading.listing.looked_at;
            let mut ids = batch.goroutines.iter().map(|goroutine| goroutine.goid);
            // The same memory may be mapped many times.
            if mostly_bad || !ids.all(|id| reading.ids_once.is_new(id)) {
                return Err(NO_SENSE.to_owned());
            }
            each(batch);
        }
        Ok(())
    }

    /// Some of the pointers of an array whose address is at `array`, by their places,
    /// from the lowest up.
    fn pointers(&self, array: u64, places: &[u64]) -> Option<Vec<u64>> {
        for _ in 0..ATTEMPTS {
            let before = self.memory.word(array)?;
            let at = places.iter().map(|place| before.wrapping_add(place * 8));
            let pieces = Pieces::read(self.memory, &at.collect::<Vec<_>>(), 8);
            let words = (0..places.len()).map(|index| pieces.get(index)?.first_chunk().copied());
            let pointers: Option<Vec<u64>> = words.map(|w| w.map(u64::from_le_bytes)).collect();
            // An array that the list has left behind may be used for other things.
            if pointers.is_some() && self.memory.word(array) == Some(before) {
                return pointers;
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
