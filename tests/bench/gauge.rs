//! What the daemon and its shims hold, looked at now and then for as long as the load lasts.

use std::fs;
use std::time::{Duration, Instant};

use crate::desk::{Desk, median, pss_kib};

/// Looks in each tenth of the run; more would cost what they measure.
const SAMPLES_PER_TENTH: u32 = 10;

pub struct Gauge {
    samples: Vec<Sample>,
    pub daemon_cpu_percent: f64,
    /// Of all cpus, by all of the machine.
    pub idle_percent: f64,
}

pub struct Sample {
    pub daemon_kib: f64,
    pub shims_kib: f64,
    pub fds: f64,
}

/// A tenth of the run. In the third, what only grows at first (caches, buffers, spools) has grown.
#[derive(Clone, Copy)]
pub enum Window {
    Third,
    Last,
}

impl Sample {
    fn of(desk: &Desk) -> Self {
        let fds = fs::read_dir(format!("/proc/{}/fd", desk.pid())).unwrap().count();
        Self {
            daemon_kib: pss_kib(desk.pid()).expect("the daemon lives"),
            // A sandbox that is being stopped has a shim that may end while it is looked at.
            shims_kib: desk.shim_pids().into_iter().filter_map(pss_kib).sum(),
            fds: fds as f64,
        }
    }

    pub fn total_kib(&self) -> f64 {
        self.daemon_kib + self.shims_kib
    }
}

impl Gauge {
    /// Returns once the time is over.
    pub async fn watch(desk: &Desk, length: Duration) -> Self {
        let began = Instant::now();
        let (ticks, cpu) = (desk.cpu_ticks(), Cpu::now());
        let every = length / (10 * SAMPLES_PER_TENTH);
        let mut timer = tokio::time::interval(every);
        timer.tick().await;
        let mut samples = Vec::new();
        for _ in 0..10 * SAMPLES_PER_TENTH {
            timer.tick().await;
            samples.push(Sample::of(desk));
        }
        let seconds = began.elapsed().as_secs_f64();
        Self {
            samples,
            daemon_cpu_percent: (desk.cpu_ticks() - ticks) as f64 / seconds,
            idle_percent: Cpu::now().idle_percent_since(&cpu),
        }
    }

    pub fn average(&self, window: Window, of: fn(&Sample) -> f64) -> f64 {
        let values = self.within(window, of);
        values.iter().sum::<f64>() / values.len() as f64
    }

    pub fn median(&self, window: Window, of: fn(&Sample) -> f64) -> f64 {
        median(&self.within(window, of))
    }

    /// The median of each tenth.
    pub fn each(&self, of: fn(&Sample) -> f64) -> Vec<f64> {
        self.tenths().map(|tenth| median(&tenth.iter().map(of).collect::<Vec<_>>())).collect()
    }

    fn within(&self, window: Window, of: fn(&Sample) -> f64) -> Vec<f64> {
        let index = match window {
            Window::Third => 2,
            Window::Last => 9,
        };
        self.tenths().nth(index).unwrap().iter().map(of).collect()
    }

    fn tenths(&self) -> impl Iterator<Item = &[Sample]> {
        self.samples.chunks(SAMPLES_PER_TENTH as usize)
    }
}

/// The first line of /proc/stat.
struct Cpu {
    idle: f64,
    all: f64,
}

impl Cpu {
    fn now() -> Self {
        let text = fs::read_to_string("/proc/stat").unwrap();
        let line = text.lines().next().unwrap();
        let counts: Vec<f64> =
            line.split_whitespace().skip(1).take(8).map(|word| word.parse().unwrap()).collect();
        Self { idle: counts[3] + counts[4], all: counts.iter().sum() }
    }

    fn idle_percent_since(&self, before: &Self) -> f64 {
        100.0 * (self.idle - before.idle) / (self.all - before.all)
    }
}
