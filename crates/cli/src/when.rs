//! Dates and times for people.

use std::time::Duration;

/// Formats a time in microseconds since the Unix epoch as a date: `2026-11-26 10:12:03 UTC`.
pub(crate) fn date(micros: u64) -> String {
    let seconds = micros / 1_000_000;
    let (days, second) = (seconds / 86_400, seconds % 86_400);
    let (year, month, day) = civil(days);
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    format!("{year:04}-{month:02}-{day:02} {hour:02}:{minute:02}:{second:02} UTC")
}

/// Returns the year, month and day of a number of days after 1970-01-01, in the Gregorian calendar.
fn civil(days: u64) -> (u64, u64, u64) {
    // Counted from 0000-03-01, so that a leap day is the last day of its year.
    const TO_1970: u64 = 719_468;
    const DAYS_400_YEARS: u64 = 146_097;
    let days = days + TO_1970;
    let of_era = days % DAYS_400_YEARS;
    let year = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year + year / 4 - year / 100);
    // Months from March on have 31, 30, 31, 30, 31 days, again and again.
    let month = (5 * of_year + 2) / 153;
    let day = of_year - (153 * month + 2) / 5 + 1;
    let (month, later) = if month < 10 { (month + 3, 0) } else { (month - 9, 1) };
    (days / DAYS_400_YEARS * 400 + year + later, month, day)
}

/// Formats a duration in the unit that fits it: `12.3 ms`, `4.1 s`, `12 min 5 s`, `3 h 20 min`, `2 days 4 h`.
pub(crate) fn duration(time: Duration) -> String {
    let seconds = time.as_secs();
    match seconds {
        0 => format!("{:.1} ms", time.as_secs_f64() * 1e3),
        1..120 => format!("{:.1} s", time.as_secs_f64()),
        120..7200 => format!("{} min {} s", seconds / 60, seconds % 60),
        7200..172_800 => format!("{} h {} min", seconds / 3600, seconds / 60 % 60),
        _ => format!("{} days {} h", seconds / 86_400, seconds / 3600 % 24),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_those_of_the_calendar() {
        for (seconds, wanted) in [
            (0, "1970-01-01 00:00:00 UTC"),
            (951_782_399, "2000-02-28 23:59:59 UTC"),
            (951_782_400, "2000-02-29 00:00:00 UTC"),
            (951_868_800, "2000-03-01 00:00:00 UTC"),
            (1_709_164_800, "2024-02-29 00:00:00 UTC"),
            (1_735_689_599, "2024-12-31 23:59:59 UTC"),
            (4_107_542_400, "2100-03-01 00:00:00 UTC"),
        ] {
            assert_eq!(date(seconds * 1_000_000 + 999_999), wanted);
        }
        // Each day follows the one before.
        let mut before = civil(0);
        for days in 1..200_000 {
            let (year, month, day) = civil(days);
            let next = before.0 == year && before.1 == month && before.2 + 1 == day
                || before.0 == year && before.1 + 1 == month && day == 1 && before.2 >= 28
                || before.0 + 1 == year && (before.1, before.2, month, day) == (12, 31, 1, 1);
            assert!(next, "{before:?}, then {year}-{month}-{day}");
            before = (year, month, day);
        }
        date(u64::MAX);
    }

    #[test]
    fn durations_have_the_unit_that_fits() {
        let shown = |millis| duration(Duration::from_millis(millis));
        assert_eq!(shown(12), "12.0 ms");
        assert_eq!(shown(1500), "1.5 s");
        assert_eq!(shown(725_000), "12 min 5 s");
        assert_eq!(shown(12_000_000), "3 h 20 min");
        assert_eq!(shown(187_200_000), "2 days 4 h");
    }
}
