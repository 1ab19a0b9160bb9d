//! `strftime` in UTC, as far as templates use it.

use std::time::Duration;

const DAYS: [&str; 7] = ["Thursday", "Friday", "Saturday", "Sunday", "Monday", "Tuesday", "Wednesday"];
const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];

/// `format` at `now` after the Unix epoch; `Err` holds the directive that is not known.
pub(super) fn strftime(format: &str, now: Duration) -> Result<String, String> {
    let seconds = now.as_secs();
    let (days, second) = (seconds / 86_400, seconds % 86_400);
    let (year, month, day) = civil(days);
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    let month_name = MONTHS[month as usize - 1];
    let day_name = DAYS[(days % 7) as usize];
    let hour12 = (hour + 11) % 12 + 1;

    let mut text = String::new();
    let mut chars = format.chars();
    while let Some(c) = chars.next() {
        if c != '%' {
            text.push(c);
            continue;
        }
        let mut directive = chars.next();
        let unpadded = directive == Some('-');
        if unpadded {
            directive = chars.next();
        }
        let two = |n: u64| if unpadded { n.to_string() } else { format!("{n:02}") };
        text.push_str(&match directive {
            Some('Y') => year.to_string(),
            Some('y') => two(year % 100),
            Some('m') => two(month),
            Some('d') => two(day),
            Some('e') => format!("{day:2}"),
            Some('H') => two(hour),
            Some('I') => two(hour12),
            Some('M') => two(minute),
            Some('S') => two(second),
            Some('j') => {
                if unpadded {
                    day_of_year(days, year).to_string()
                } else {
                    format!("{:03}", day_of_year(days, year))
                }
            }
            Some('p') => if hour < 12 { "AM" } else { "PM" }.into(),
            Some('B') => month_name.into(),
            Some('b' | 'h') => month_name[..3].into(),
            Some('A') => day_name.into(),
            Some('a') => day_name[..3].into(),
            Some('F') => format!("{year}-{month:02}-{day:02}"),
            Some('T') => format!("{hour:02}:{minute:02}:{second:02}"),
            Some('Z') => "UTC".into(),
            Some('z') => "+0000".into(),
            Some('%') => "%".into(),
            Some(other) => return Err(format!("%{other}")),
            None => return Err("%".into()),
        });
    }
    Ok(text)
}

/// Year, month and day of a number of days since 1970-01-01.
///
/// Source: Howard Hinnant, chrono-compatible low-level date algorithms, `civil_from_days`.
fn civil(days: u64) -> (u64, u64, u64) {
    let shifted = days + 719_468;
    let (era, of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * of_year + 2) / 153;
    let day = of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
    (year_of_era + era * 400 + u64::from(month <= 2), month, day)
}

fn day_of_year(days: u64, year: u64) -> u64 {
    let before = (1970..year).map(|y| 365 + u64::from(y % 4 == 0 && (y % 100 != 0 || y % 400 == 0))).sum::<u64>();
    days - before + 1
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(seconds: u64, format: &str, expected: &str) {
        assert_eq!(strftime(format, Duration::from_secs(seconds)).as_deref(), Ok(expected));
    }

    #[test]
    fn formats_like_python() {
        check(0, "%Y-%m-%d %H:%M:%S %A %j", "1970-01-01 00:00:00 Thursday 001");
        check(951_782_400, "%d %b %Y", "29 Feb 2000");
        check(1_735_689_599, "%a %-d %B %y %I:%M %p %j %%", "Tue 31 December 24 11:59 PM 366 %");
        check(1_767_225_600, "%F %T %e %Z%z", "2026-01-01 00:00:00  1 UTC+0000");
        check(43_200, "%I %p %-I", "12 PM 12");
        assert_eq!(strftime("%Q", Duration::ZERO), Err("%Q".into()));
        assert_eq!(strftime("a%", Duration::ZERO), Err("%".into()));
    }
}
