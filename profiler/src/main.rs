//! The `goprof` command: parse, run, exit code.
use goprof::{decode::*, probe::*, ringbuf::*};
#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    let mut probes = Probes::load(&Options{kernel_stacks:true, watch_execs:true, ring_bytes: 1<<20})?;
    let mut targets = probes.take_targets()?;
    for p in std::env::args().skip(1) { targets.insert(p.parse()?)?; }
    let mut rec = Records::new(probes.take_ring()?)?;
    probes.attach_lifecycle()?;
    println!("{:?}", probes.attach_cpu(99)?);
    for _ in 0..20 { rec.ready().await; rec.drain(1000, |b| match decode(b) { Ok(Event::Sample(s)) => println!("{} {:?} n={} slice={} k={} {:?} len {}", s.head.header.pid, s.walk_end, s.callers.len(), s.slice.len(), s.kernel.len(), std::str::from_utf8(&s.head.comm), b.len()), o => println!("{o:?}") }); }
    println!("{:?}", probes.counters()?);
    Ok(())
}
