//! When a limit bites, or is near: what to say, from one reading to the next. Pure; who reads and who says it is
//! `reconcile`'s business.

use crate::{ExitRecord, Level, Limits, Reading, Span, Time};

/// A limit is near when this much of it is used,
const NEAR_PERCENT: u64 = 90;
/// and no longer near when less than this is: what swings about the wall says so once.
const CLEAR_PERCENT: u64 = 80;
/// Time is nearly over when so much is left.
const NEAR_SECONDS: u64 = 60;
/// cpu is looked at over so long,
const CPU_WINDOW: Span = Span::seconds(60);
/// and is short when it was stopped in so many of its periods.
const CPU_SHORT_PERCENT: u64 = 25;
/// What goes on biting is said again after this, with what it has come to.
const AGAIN: Span = Span::seconds(60);
/// A cpu that is always short is no news.
const CPU_AGAIN: Span = Span::seconds(600);

/// Something to say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Alarm {
    /// CamelCase, for programs.
    pub reason: &'static str,
    pub level: Level,
    pub message: String,
    /// Whether it is said on the console too.
    pub on_console: bool,
    /// The limit that was met, unless the kernel counts that itself.
    pub breach: Option<&'static str>,
}

/// What was said of one instance, and what was read last.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Watch {
    last: Option<Reading>,
    memory_near: bool,
    disk_near: bool,
    disk_full_since: Option<Time>,
    time_near: bool,
    ooms: Counter,
    refused: Counter,
    window: Option<(Time, u64, u64)>,
    cpu_said: Option<Time>,
}

/// Of something that the kernel counts.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Counter {
    said: Option<u64>,
    said_at: Option<Time>,
}

impl Counter {
    /// How many there are to tell of.
    fn tell(&mut self, count: u64, now: Time) -> Option<u64> {
        // What there was before we looked is somebody else's news.
        let said = *self.said.get_or_insert(count);
        let waits = self.said_at.is_some_and(|at| at.after(AGAIN) > now);
        if count <= said || waits {
            return None;
        }
        (self.said, self.said_at) = (Some(count), Some(now));
        Some(count - said)
    }
}

impl Watch {
    /// What a new reading has to say. The first of an instance that has run for long tells only how things are.
    pub fn look(&mut self, limits: &Limits, reading: &Reading) -> Vec<Alarm> {
        let mut alarms = Vec::new();
        alarms.extend(self.memory(limits, reading));
        alarms.extend(self.disk(limits, reading));
        alarms.extend(self.time(limits, reading));
        alarms.extend(self.cpu(limits, reading));
        if let Some(count) = self.ooms.tell(reading.oom_kills, reading.at) {
            alarms.push(warning("OutOfMemory", format!("memory: {}", counted(count, "OOM kill"))));
        }
        if let Some(count) = self.refused.tell(reading.processes_refused, reading.at) {
            let limit = limits.max_processes;
            let refused = counted(count, "process");
            let message = format!("process limit of {limit} hit: {refused} refused");
            alarms.push(warning("ProcessLimit", message));
        }
        self.last = Some(reading.clone());
        alarms
    }

    /// Whether a limit is so near that it should be looked at soon.
    pub fn is_close(&self) -> bool {
        self.memory_near || self.disk_near || self.time_near
    }

    fn memory(&mut self, limits: &Limits, reading: &Reading) -> Option<Alarm> {
        let (used, all) = (reading.memory_bytes, limits.memory_mb << 20);
        crossed(&mut self.memory_near, used, all).then(|| {
            let message = format!("memory: {} of {} MiB used", used >> 20, limits.memory_mb);
            Alarm { on_console: true, ..warning("MemoryNearLimit", message) }
        })
    }

    fn disk(&mut self, limits: &Limits, reading: &Reading) -> Option<Alarm> {
        let disk = reading.disk.filter(|_| limits.disk_mb > 0)?;
        let was_full = self.disk_full_since.is_some();
        let since = disk.is_full.then(|| self.disk_full_since.unwrap_or(reading.at));
        self.disk_full_since = since;
        let near = crossed(&mut self.disk_near, disk.used_bytes, disk.total_bytes);
        if disk.is_full && !was_full {
            let message = format!("disk full since {}", clock(reading.at));
            let full = warning("DiskFull", message);
            return Some(Alarm { on_console: true, breach: Some("disk_mb"), ..full });
        }
        near.then(|| {
            let (used, all) = (disk.used_bytes >> 20, disk.total_bytes >> 20);
            let message = format!("disk: {used} of {all} MiB used");
            Alarm { on_console: true, ..warning("DiskNearLimit", message) }
        })
    }

    /// The console is told by the shim, which is there without us.
    fn time(&mut self, limits: &Limits, reading: &Reading) -> Option<Alarm> {
        let left = limits.timeout_seconds.checked_sub(reading.ran_seconds)?;
        let near = limits.timeout_seconds > NEAR_SECONDS && left <= NEAR_SECONDS;
        let crosses = near && !self.time_near;
        self.time_near = near;
        let message = || format!("{left} s are left of {} s", limits.timeout_seconds);
        crosses.then(|| warning("TimeoutNear", message()))
    }

    fn cpu(&mut self, limits: &Limits, reading: &Reading) -> Option<Alarm> {
        let now = (reading.at, reading.periods, reading.throttled_periods);
        let (at, periods, throttled) = *self.window.get_or_insert(now);
        if limits.cpu_percent == 0 || at.after(CPU_WINDOW) > reading.at {
            return None;
        }
        self.window = Some(now);
        let ran = reading.periods.saturating_sub(periods);
        let stopped = reading.throttled_periods.saturating_sub(throttled);
        // Against the whole minute, not against the periods in which it wanted to run.
        let all = (at.until(reading.at).0 / PERIOD_MS).max(ran).max(1);
        let percent = stopped * 100 / all;
        let waits = self.cpu_said.is_some_and(|at| at.after(CPU_AGAIN) > reading.at);
        if percent < CPU_SHORT_PERCENT || waits {
            return None;
        }
        self.cpu_said = Some(reading.at);
        let message = format!("cpu throttled {percent} % of the last minute");
        Some(Alarm { breach: Some("cpu_percent"), ..warning("CpuThrottled", message) })
    }
}

/// What an end has to say that nobody could read before: what is out of memory ends as a whole.
pub fn of_end(exit: &ExitRecord) -> Option<Alarm> {
    let count = Some(exit.oom_kills).filter(|count| *count > 0)?;
    Some(warning("OutOfMemory", format!("memory: {}", counted(count, "OOM kill"))))
}

/// The length of a cpu period.
const PERIOD_MS: u64 = 100;

fn warning(reason: &'static str, message: String) -> Alarm {
    Alarm { reason, level: Level::Warning, message, on_console: false, breach: None }
}

/// Whether a limit has just come near.
fn crossed(near: &mut bool, used: u64, all: u64) -> bool {
    let percent = (used * 100).checked_div(all).unwrap_or(0);
    if percent >= NEAR_PERCENT && !*near {
        *near = true;
        return true;
    }
    *near &= percent >= CLEAR_PERCENT;
    false
}

fn counted(count: u64, what: &str) -> String {
    match (count, what) {
        (1, _) => format!("1 {what}"),
        (_, "process") => format!("{count} processes"),
        (_, _) => format!("{count} {what}s"),
    }
}

/// The minute of the day, as everywhere in UTC.
fn clock(at: Time) -> String {
    let minutes = at.0 / 60_000 % 1440;
    format!("{:02}:{:02} UTC", minutes / 60, minutes % 60)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::DiskReading;

    const LIMITS: Limits = Limits {
        memory_mb: 100,
        disk_mb: 10,
        timeout_seconds: 300,
        cpu_percent: 50,
        max_processes: 4,
        ..Limits::NONE
    };

    /// Readings, a second apart or as far as they say, and all that is said.
    #[track_caller]
    fn check(readings: impl IntoIterator<Item = Reading>, want: &[&str]) {
        let mut watch = Watch::default();
        let said: Vec<String> = readings
            .into_iter()
            .flat_map(|reading| watch.look(&LIMITS, &reading))
            .map(|alarm| alarm.message)
            .collect();
        assert_eq!(said, want);
    }

    fn at(second: u64) -> Reading {
        Reading { at: Time(second * 1000), ran_seconds: second, ..Reading::default() }
    }

    fn memory(second: u64, mb: u64) -> Reading {
        Reading { memory_bytes: mb << 20, ..at(second) }
    }

    #[test]
    fn memory_is_said_to_be_near_once_until_it_was_far() {
        let readings = [memory(0, 50), memory(1, 90), memory(2, 85), memory(3, 95), memory(4, 70)];
        check(readings.clone(), &["memory: 90 of 100 MiB used"]);
        let again = readings.into_iter().chain([memory(5, 92)]);
        check(again, &["memory: 90 of 100 MiB used", "memory: 92 of 100 MiB used"]);
    }

    #[test]
    fn a_disk_is_near_then_full_since_a_time() {
        let disk = |second, used: u64| {
            let is_full = used == 10;
            let disk = DiskReading { used_bytes: used << 20, total_bytes: 10 << 20, is_full };
            Reading { disk: Some(disk), ..at(second) }
        };
        let readings = [disk(0, 1), disk(1, 9), disk(120, 10), disk(121, 10)];
        check(readings, &["disk: 9 of 10 MiB used", "disk full since 00:02 UTC"]);
    }

    #[test]
    fn what_the_kernel_counts_is_said_at_once_and_then_by_the_minute() {
        let ooms = |second, oom_kills| Reading { oom_kills, ..at(second) };
        let readings = [ooms(0, 7), ooms(1, 8), ooms(2, 10), ooms(30, 11), ooms(62, 11)];
        check(readings, &["memory: 1 OOM kill", "memory: 3 OOM kills"]);
        let refused = |second, processes_refused| Reading { processes_refused, ..at(second) };
        check([refused(0, 0), refused(1, 2)], &["process limit of 4 hit: 2 processes refused"]);
    }

    #[test]
    fn time_is_said_to_run_out_a_minute_before() {
        check([at(200), at(241), at(250)], &["59 s are left of 300 s"]);
    }

    #[test]
    fn a_cpu_that_was_held_back_for_much_of_a_minute_is_said() {
        let cpu = |second, throttled_periods| Reading {
            periods: second * 10,
            throttled_periods,
            ..at(second)
        };
        check([cpu(0, 0), cpu(30, 246), cpu(60, 246)], &["cpu throttled 41 % of the last minute"]);
        check([cpu(0, 0), cpu(60, 100)], &[]);
        // Idle but for a moment: throttled in all the periods in which it ran, and no news.
        let rarely = Reading { periods: 20, throttled_periods: 20, ..at(60) };
        check([cpu(0, 0), rarely], &[]);
    }
}
