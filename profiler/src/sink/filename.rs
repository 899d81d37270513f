//! File names for profiles whose place was not given. Pure: looks at no file.

use std::time::SystemTime;

use crate::profile::Format;
use crate::symbolize::Event;

/// What a profile is of, as its file name tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Subject<'a> {
    /// One process: `comm-pid`.
    Process {
        /// Its name.
        comm: &'a str,
        /// Its process id.
        pid: u32,
    },
    /// A command that goprof starts, whose pid is not known yet: the name of
    /// the program, without its folder.
    Command(&'a str),
    /// Several chosen processes: `selected`.
    Selected,
    /// Every Go process: `all`.
    All,
}

/// The longest name of a subject, in bytes. With time, event and extension the
/// file name stays far below the 255 bytes that file systems allow.
const MAX_SUBJECT_BYTES: usize = 100;

/// The default file name: `<subject>-<YYYYmmddTHHMMSSZ>.<event>.<extension>`,
/// of characters that need no quoting in a shell.
pub fn default_name(
    subject: Subject<'_>,
    start: SystemTime,
    event: Event,
    format: Format,
) -> String {
    let subject = match subject {
        Subject::Process { comm, pid } => format!("{}-{pid}", sanitize(comm)),
        Subject::Command(program) => {
            let base = program.trim_end_matches('/').rsplit('/').next();
            sanitize(base.unwrap_or_default())
        }
        Subject::Selected => "selected".to_owned(),
        Subject::All => "all".to_owned(),
    };
    format!(
        "{subject}-{}.{}.{}",
        utc(start),
        event.name(),
        format.extension()
    )
}

/// The name with everything but ASCII letters, digits, `.`, `_`, `-` replaced
/// by `_`, never hidden, never an option, never empty.
fn sanitize(name: &str) -> String {
    let safe: String = name
        .chars()
        .map(|c| match c {
            'a'..='z' | 'A'..='Z' | '0'..='9' | '.' | '_' | '-' => c,
            _ => '_',
        })
        .take(MAX_SUBJECT_BYTES)
        .collect();
    match safe.trim_start_matches(['.', '-']) {
        "" => "unknown".to_owned(),
        safe => safe.to_owned(),
    }
}

/// The time as `YYYYmmddTHHMMSSZ`, the epoch for a clock before it.
fn utc(time: SystemTime) -> String {
    let seconds = time
        .duration_since(SystemTime::UNIX_EPOCH)
        .map_or(0, |d| d.as_secs());
    let (year, month, day) = civil_date(seconds / 86_400);
    let of_day = seconds % 86_400;
    let (hour, minute, second) = (of_day / 3600, of_day / 60 % 60, of_day % 60);
    format!("{year:04}{month:02}{day:02}T{hour:02}{minute:02}{second:02}Z")
}

/// Year, month and day of a day since 1970-01-01 in the Gregorian calendar.
///
/// Years are counted from March, so that the leap day comes last, in cycles of
/// 400 years, which have 146,097 days.
pub(super) fn civil_date(days: u64) -> (u64, u64, u64) {
    // 0000-03-01 lies 719,468 days before the epoch.
    let days = days + 719_468;
    let cycle = days / 146_097;
    let of_cycle = days % 146_097;
    let year_of_cycle =
        (of_cycle - of_cycle / 1_460 + of_cycle / 36_524 - of_cycle / 146_096) / 365;
    let of_year = of_cycle - (365 * year_of_cycle + year_of_cycle / 4 - year_of_cycle / 100);
    // Months from March have 153 days in every five.
    let month_from_march = (5 * of_year + 2) / 153;
    let day = of_year - (153 * month_from_march + 2) / 5 + 1;
    let (month, carry) = match month_from_march {
        m @ 0..=9 => (m + 3, 0),
        m => (m - 9, 1),
    };
    (cycle * 400 + year_of_cycle + carry, month, day)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn at(seconds: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
    }

    #[test]
    fn a_name_tells_subject_time_event_and_format() {
        let start = at(1_800_000_000);
        let name = |subject| default_name(subject, start, Event::Cpu, Format::Pprof);
        let api = Subject::Process {
            comm: "api",
            pid: 42,
        };
        assert_eq!(name(api), "api-42-20270115T080000Z.cpu.pb.gz");
        assert_eq!(name(Subject::All), "all-20270115T080000Z.cpu.pb.gz");
        assert_eq!(
            name(Subject::Selected),
            "selected-20270115T080000Z.cpu.pb.gz"
        );
        assert_eq!(
            name(Subject::Command("./bin/server")),
            "server-20270115T080000Z.cpu.pb.gz"
        );
        assert_eq!(
            default_name(api, start, Event::Cpu, Format::Flamegraph),
            "api-42-20270115T080000Z.cpu.html"
        );
    }

    #[test]
    fn a_hostile_comm_stays_in_the_folder_and_needs_no_quotes() {
        let cases = [
            ("../../etc/x", "_.._etc_x"),
            ("-rf *", "rf__"),
            (".hidden", "hidden"),
            ("a b\n\0c", "a_b__c"),
            ("für", "f_r"),
            ("", "unknown"),
            ("..", "unknown"),
        ];
        for (comm, want) in cases {
            assert_eq!(sanitize(comm), want, "{comm:?}");
        }
        assert_eq!(sanitize(&"x".repeat(5000)).len(), MAX_SUBJECT_BYTES);
    }

    #[test]
    fn dates_are_right_at_leap_days_and_centuries() {
        let cases = [
            (0, "19700101T000000Z"),
            (951_782_399, "20000228T235959Z"),
            (951_782_400, "20000229T000000Z"),
            (951_868_800, "20000301T000000Z"),
            (1_709_164_800, "20240229T000000Z"),
            (1_735_689_599, "20241231T235959Z"),
            (4_107_542_400, "21000301T000000Z"),
            (253_402_300_799, "99991231T235959Z"),
        ];
        for (seconds, want) in cases {
            assert_eq!(utc(at(seconds)), want);
        }
        assert_eq!(utc(at(0) - Duration::from_secs(1)), "19700101T000000Z");
    }
}
