//! Where a Go program keeps the list of its goroutines, decoded from the one
//! function that adds to it. Reads code, never the program's memory.

use super::bytes::{read_i32, read_u8, read_u32};

/// Link-time addresses of two words of the runtime (`runtime/proc.go`, all
/// versions).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AllGoroutines {
    /// `allgptr **g`: the address of an array of pointers.
    pub array: u64,
    /// `allglen uintptr`: how many there are.
    pub count: u64,
}

/// The function that sets both, first the one, then the other, and takes the
/// address of little else.
pub(super) const ANCHOR: &str = "runtime.allgadd";

/// Bytes of its code looked at; it has some 400.
const MAX_CODE_BYTES: usize = 4096;
/// Addresses taken in it: of a lock, the two words, and on arm64 the slice.
const MAX_ADDRESSES: usize = 16;

/// The last two addresses that `code` takes of zeroed memory, in the order of
/// first sight. None where there are fewer.
fn last_two(found: impl Iterator<Item = u64>) -> Option<AllGoroutines> {
    let mut distinct = Vec::new();
    for address in found.take(MAX_ADDRESSES) {
        if !distinct.contains(&address) {
            distinct.push(address);
        }
    }
    match distinct[..] {
        [.., array, count] => Some(AllGoroutines { array, count }),
        _ => None,
    }
}

/// Decodes `runtime.allgadd` of amd64, whose code begins at `vaddr`. `is_zeroed`
/// says whether an address is of memory that the file does not hold.
pub(super) fn decode_amd64(
    code: &[u8],
    vaddr: u64,
    is_zeroed: impl Fn(u64) -> bool,
) -> Option<AllGoroutines> {
    let code = &code[..code.len().min(MAX_CODE_BYTES)];
    // `lea register, [rip+distance]`: REX.W, opcode, ModRM, distance. Other
    // bytes can look like one; that they lead to zeroed memory is unlikely, and
    // what is found is proven before it is used.
    let targets = (0..code.len()).filter_map(|at| {
        let matches = read_u8(code, at)? & 0xfb == 0x48
            && read_u8(code, at + 1)? == 0x8d
            && read_u8(code, at + 2)? & 0xc7 == 0x05;
        let distance = read_i32(code, at + 3).filter(|_| matches)?;
        let next = vaddr.wrapping_add(at as u64 + 7);
        Some(next.wrapping_add_signed(distance.into()))
    });
    last_two(targets.filter(|address| is_zeroed(*address)))
}

/// The same of arm64.
pub(super) fn decode_arm64(
    code: &[u8],
    vaddr: u64,
    is_zeroed: impl Fn(u64) -> bool,
) -> Option<AllGoroutines> {
    let code = &code[..code.len().min(MAX_CODE_BYTES)];
    // `adrp register, pages` and right after it `add register, register, rest`.
    // What the assembler puts into its own register (R27) is not taken by the
    // code but read or written at once.
    let targets = (0..code.len() / 4).filter_map(|index| {
        let (adrp, add) = (read_u32(code, index * 4)?, read_u32(code, index * 4 + 4)?);
        let register = adrp & 31;
        let matches = adrp & 0x9f00_0000 == 0x9000_0000
            && add & 0xffc0_0000 == 0x9100_0000
            && add & 31 == register
            && add >> 5 & 31 == register
            && register != 27;
        let pages = (adrp >> 5 & 0x7_ffff) << 2 | adrp >> 29 & 3;
        let distance = i64::from((pages << 11) as i32 >> 11) << 12;
        let here = vaddr.wrapping_add(index as u64 * 4) & !0xfff;
        let page = here.wrapping_add_signed(distance);
        matches.then(|| page.wrapping_add(u64::from(add >> 10 & 0xfff)))
    });
    last_two(targets.filter(|address| is_zeroed(*address)))
}

#[cfg(test)]
mod tests {
    use super::*;

    const ZEROED: std::ops::Range<u64> = 0x57_0000..0x58_0000;

    fn amd64(code: &[u8]) -> Option<AllGoroutines> {
        decode_amd64(code, 0x43_4780, |address| ZEROED.contains(&address))
    }

    #[test]
    fn the_last_two_addresses_count() {
        // lea rax, [lock]; lea rsi, [type]; lea rax, [array]; lea rcx, [array];
        // lea rdx, [count]; lea rax, [lock]
        let lea = |rex: u8, modrm: u8, at: u64, target: u64| {
            let distance = (target - (0x43_4780 + at + 7)) as u32;
            [&[rex, 0x8d, modrm][..], &distance.to_le_bytes()].concat()
        };
        let code = [
            lea(0x48, 0x05, 0, 0x57_0008),
            lea(0x48, 0x35, 7, 0x49_0000),
            lea(0x48, 0x05, 14, 0x57_0010),
            lea(0x48, 0x0d, 21, 0x57_0010),
            lea(0x4c, 0x15, 28, 0x57_0018),
            lea(0x48, 0x05, 35, 0x57_0008),
        ]
        .concat();
        let expected = AllGoroutines {
            array: 0x57_0010,
            count: 0x57_0018,
        };
        assert_eq!(amd64(&code), Some(expected));
        assert_eq!(amd64(&code[..13]), None, "one address");
        assert_eq!(amd64(&[]), None);
        assert_eq!(amd64(&[0x48; 9000]), None);
    }

    #[test]
    fn arm64_takes_addresses_in_two_instructions() {
        // Go 1.27: allglock, allgptr, allglen.
        let at = 0x6_2334_u64;
        let words: [u32; 6] = [
            0xf000_0840,
            0x9139_c000,
            0xb000_0722,
            0x9113_c042,
            0xf000_0842,
            0x9139_e042,
        ];
        let code: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        let found = decode_arm64(&code, at, |_| true).unwrap();
        assert_eq!((found.array & 0xfff, found.count & 0xfff), (0x4f0, 0xe78));
        assert_eq!(decode_arm64(&code, at, |_| false), None);
    }
}
