//! Puts objects into a spool until it is killed, and prints the number of each
//! when it is there to stay.

#![expect(
    clippy::expect_used,
    reason = "a tool of the tests: a failure is a panic"
)]

use std::io::Write as _;
use std::path::Path;

use goprof::sink::Spool;

fn main() {
    let folder = std::env::args().nth(1).expect("name a folder");
    let spool = Spool::open(Path::new(&folder), 1 << 30).expect("open the spool");
    let mut stdout = std::io::stdout().lock();
    for number in 0_u32.. {
        let object = number.to_le_bytes().repeat(5_000);
        spool
            .put(&number.to_string(), &object)
            .expect("put an object");
        writeln!(stdout, "{number}").expect("say so");
        stdout.flush().expect("say so");
    }
}
