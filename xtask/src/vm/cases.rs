//! What is tried on every kernel: a Go program, a command of goprof's that looks at
//! it, and what must come out. A new event is one entry of the table.

use anyhow::{Context, Result, bail, ensure};

use super::console::{Section, Stack, stacks};

/// One thing that is tried.
#[derive(Debug)]
pub struct Case {
    /// Its name in the tables.
    pub name: &'static str,
    /// A program of tests/go.
    pub program: &'static str,
    /// Its arguments.
    pub arguments: &'static str,
    /// A line that it is told five times a second, on standard input.
    pub feed: &'static str,
    /// The arguments of goprof; without `$PID` it starts the program itself.
    pub command: &'static str,
    /// The oldest kernel that can do it; on older ones goprof must fail and say why.
    pub since: (u32, u32),
    /// What is wrong, or what was seen.
    pub judge: fn(&Section) -> Result<String>,
}

/// The oldest kernel that goprof runs on.
const OLDEST: (u32, u32) = (5, 17);

/// Every case.
pub const CASES: [Case; 9] = [
    Case {
        name: "cpu",
        program: "busy_loop",
        arguments: "",
        feed: "",
        command: "record -p $PID -d 4 -v -f folded -o -",
        since: OLDEST,
        judge: shares,
    },
    Case {
        name: "command",
        program: "busy_loop",
        arguments: "-duration 3s",
        feed: "",
        command: "record -v -f folded -o -",
        since: OLDEST,
        judge: shares,
    },
    Case {
        name: "kernel stacks",
        program: "system_calls",
        arguments: "",
        feed: "",
        command: "record -p $PID -d 3 -v -f folded -o -",
        since: OLDEST,
        judge: kernel_stacks,
    },
    Case {
        name: "deep stacks",
        program: "stack_depth",
        arguments: "-frames 300",
        feed: "",
        command: "record -p $PID -d 3 -r 49 -v -f folded -o -",
        since: OLDEST,
        judge: deep_stacks,
    },
    Case {
        name: "labels",
        program: "stack_depth",
        arguments: "-labels 3",
        feed: "",
        command: "record -p $PID -d 3 -v --label label2=value -f folded -o -",
        since: OLDEST,
        judge: labels,
    },
    Case {
        name: "heap",
        program: "alloc_sites",
        arguments: "",
        feed: "round",
        command: "record -e heap -p $PID -v --sample-type alloc_space -f folded -o -",
        since: (0, 0),
        judge: allocations,
    },
    Case {
        name: "allocs",
        program: "alloc_sites",
        arguments: "",
        feed: "round",
        command: "record -e allocs -p $PID -d 3 -v --sample-type alloc_space -f folded -o -",
        since: (0, 0),
        judge: allocations,
    },
    Case {
        name: "goroutines",
        program: "goroutines",
        arguments: "",
        feed: "",
        command: "goroutines -p $PID -f json",
        since: (0, 0),
        judge: goroutines,
    },
    Case {
        name: "stats",
        program: "goroutines",
        arguments: "",
        feed: "",
        command: "stats -p $PID --json",
        since: (0, 0),
        judge: stats,
    },
];

fn sum<'a>(stacks: &'a [Stack<'a>], wanted: impl Fn(&Stack) -> bool) -> u64 {
    let wanted = stacks.iter().filter(|stack| wanted(stack));
    wanted.map(|stack| stack.value).sum()
}

/// The least share of stacks that are whole. On arm64 goroutines that a signal handler
/// interrupted are not: an emulated machine is often in one.
const LEAST_WHOLE_PERCENT: f64 = 97.0;

/// What `-v` says of stacks: nearly every one is whole.
fn whole(section: &Section) -> Result<f64> {
    let percent = section.said.lines().find_map(|line| {
        let (before, _) = line.split_once("% of stacks whole")?;
        before.rsplit(' ').next()?.parse::<f64>().ok()
    });
    let percent = percent.context("it does not say how many stacks are whole")?;
    ensure!(
        percent >= LEAST_WHOLE_PERCENT,
        "only {percent}% of stacks are whole"
    );
    Ok(percent)
}

/// busy_loop does three times as much in the one function as in the other.
fn shares(section: &Section) -> Result<String> {
    let stacks = stacks(&section.output);
    let three = sum(&stacks, |stack| stack.has("main.spinThree"));
    let one = sum(&stacks, |stack| stack.has("main.spinOne"));
    ensure!(three + one >= 50, "only {} samples", three + one);
    #[expect(clippy::cast_precision_loss, reason = "some hundred samples")]
    let ratio = three as f64 / one.max(1) as f64;
    ensure!(
        (2.0..=4.5).contains(&ratio),
        "3 to 1 came out as {ratio:.1} to 1"
    );
    let whole = whole(section)?;
    Ok(format!(
        "{} samples, {ratio:.1} to 1, {whole}% whole",
        three + one
    ))
}

fn kernel_stacks(section: &Section) -> Result<String> {
    let stacks = stacks(&section.output);
    let all = sum(&stacks, |stack| stack.has("main.readAll"));
    let within = sum(&stacks, |stack| {
        stack.has("main.readAll") && stack.is_in_kernel() && stack.has("vfs_read_[k]")
    });
    ensure!(all >= 30, "only {all} samples");
    ensure!(
        within * 2 > all,
        "only {within} of {all} samples are in the kernel's read"
    );
    let whole = whole(section)?;
    Ok(format!(
        "{within} of {all} samples in vfs_read, {whole}% whole"
    ))
}

/// Without goexit, which folded stacks leave out.
fn deep_stacks(section: &Section) -> Result<String> {
    let stacks = stacks(&section.output);
    let at_leaf = |stack: &Stack| stack.user().last() == Some("main.leaf");
    let all = sum(&stacks, at_leaf);
    let deep = sum(&stacks, |stack| {
        at_leaf(stack) && stack.user().count() == 299
    });
    ensure!(all >= 30, "only {all} samples");
    ensure!(
        deep * 100 >= all * 99,
        "only {deep} of {all} stacks have all of their 300 frames"
    );
    Ok(format!("{deep} of {all} stacks of 300 frames"))
}

fn labels(section: &Section) -> Result<String> {
    let stacks = stacks(&section.output);
    let labelled = sum(&stacks, |stack| stack.has("main.leaf"));
    ensure!(labelled >= 30, "only {labelled} samples have the label");
    Ok(format!("{labelled} samples with a label"))
}

fn allocations(section: &Section) -> Result<String> {
    let stacks = stacks(&section.output);
    let sites = ["main.allocBuffer", "main.allocTable", "main.allocNode"];
    for site in sites {
        let bytes = sum(&stacks, |stack| stack.has(site) && stack.has("main.round"));
        ensure!(bytes > 0, "nothing was allocated in {site}");
    }
    let all = sum(&stacks, |_| true);
    let rounds = sum(&stacks, |stack| stack.has("main.round"));
    ensure!(
        rounds * 10 >= all * 9,
        "main.round has {rounds} of {all} bytes"
    );
    Ok(format!("{} kB in {} stacks", all / 1024, stacks.len()))
}

/// 10,000 parked ones, three busy ones and main.
const GOROUTINES: u64 = 10_004;

fn goroutines(section: &Section) -> Result<String> {
    let read: serde_json::Value =
        serde_json::from_str(&section.output).context("it writes no JSON")?;
    let groups = read["groups"].as_array().context("it lists no groups")?;
    let counts = groups.iter().filter_map(|group| group["count"].as_u64());
    let count: u64 = counts.sum();
    ensure!(count == GOROUTINES, "{count} goroutines of {GOROUTINES}");
    Ok(format!("{count} goroutines in {} groups", groups.len()))
}

fn stats(section: &Section) -> Result<String> {
    let read: serde_json::Value =
        serde_json::from_str(&section.output).context("it writes no JSON")?;
    match read["goroutines"]["alive"].as_u64() {
        Some(count) if count >= GOROUTINES => Ok(format!("{count} goroutines counted")),
        other => bail!("{other:?} goroutines counted"),
    }
}
