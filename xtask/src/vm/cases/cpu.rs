//! Judges of samples of CPU time: known functions with known shares, stacks of a
//! known depth.

use anyhow::{Context, Result, ensure};

use super::super::console::{Section, Stack, stacks};

/// The sum of the values of the stacks that are `wanted`.
pub fn sum<'a>(stacks: &'a [Stack<'a>], wanted: impl Fn(&Stack) -> bool) -> u64 {
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
pub fn shares(section: &Section) -> Result<String> {
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

/// system_calls reads all the time.
pub fn kernel_stacks(section: &Section) -> Result<String> {
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
pub fn deep_stacks(section: &Section) -> Result<String> {
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

/// The one label of three that is asked for.
pub fn labels(section: &Section) -> Result<String> {
    let stacks = stacks(&section.output);
    let labelled = sum(&stacks, |stack| stack.has("main.leaf"));
    ensure!(labelled >= 30, "only {labelled} samples have the label");
    Ok(format!("{labelled} samples with a label"))
}
