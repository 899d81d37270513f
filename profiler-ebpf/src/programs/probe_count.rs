//! The smallest uprobe program: what every one does, and nothing else. Calibration
//! and measurements of the budget use it.

use aya_ebpf::{macros::uprobe, programs::ProbeContext};

use super::budget::admit;

#[uprobe]
fn probe_count(ctx: ProbeContext) -> u32 {
    if let Some(admitted) = admit(&ctx) {
        admitted.charge();
    }
    0
}
