//! Resource use of this process: processor time by thread, memory.

use std::collections::BTreeMap;
use std::fs;

/// Ticks of processor time each second in `/proc`: fixed by the kernel's interface.
const TICKS: f64 = 100.0;

/// Processor seconds of this process's threads, by name.
pub(super) fn threads() -> BTreeMap<String, f64> {
    let mut by_name = BTreeMap::new();
    let Ok(tasks) = fs::read_dir("/proc/self/task") else { return by_name };
    for task in tasks.flatten() {
        let Ok(stat) = fs::read_to_string(task.path().join("stat")) else { continue };
        if let Some((name, seconds)) = parse_stat(&stat) {
            *by_name.entry(name).or_default() += seconds;
        }
    }
    by_name
}

/// Parses the name and the processor seconds out of a line of `/proc/…/stat`.
fn parse_stat(stat: &str) -> Option<(String, f64)> {
    let (head, rest) = stat.rsplit_once(')')?;
    let name = head.split_once('(')?.1.to_owned();
    let mut fields = rest.split_whitespace().skip(11);
    let user: f64 = fields.next()?.parse().ok()?;
    let system: f64 = fields.next()?.parse().ok()?;
    Some((name, (user + system) / TICKS))
}

/// Returns the seconds of each thread since an earlier look over the count of operations since then, in nanoseconds.
pub(super) fn nanos_each(
    before: &BTreeMap<String, f64>,
    after: &BTreeMap<String, f64>,
    count: f64,
) -> BTreeMap<String, f64> {
    let used = |(name, seconds): (&String, &f64)| {
        let seconds = seconds - before.get(name).copied().unwrap_or(0.0);
        (name.clone(), seconds * 1e9 / count)
    };
    after.iter().map(used).collect()
}

/// Returns the processor seconds of this process, including threads that have ended.
pub(super) fn process_seconds() -> f64 {
    process_seconds_of(std::process::id())
}

/// The same of another process; 0 if it has ended.
pub(super) fn process_seconds_of(pid: u32) -> f64 {
    fs::read_to_string(format!("/proc/{pid}/stat"))
        .ok()
        .and_then(|stat| parse_stat(&stat))
        .map_or(0.0, |(_, used)| used)
}

/// Returns the resident memory of this process, in bytes.
pub(super) fn resident_bytes() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib =
        line.and_then(|rest| rest.split_whitespace().next()).and_then(|digits| digits.parse::<u64>().ok());
    kib.unwrap_or(0) * 1024
}

#[cfg(test)]
mod tests {
    #[test]
    fn names_with_brackets_are_read() {
        let stat = "7 (a) b) S 1 7 7 0 -1 4194560 100 0 0 0 150 50 0 0 20 0 1 0 5 6 7";
        assert_eq!(super::parse_stat(stat), Some(("a) b".to_owned(), 2.0)));
        assert_eq!(super::parse_stat("7 (a) S 1"), None);
    }
}
