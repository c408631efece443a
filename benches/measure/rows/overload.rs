//! What the front door does when it is offered more than it can take.

use std::{net::SocketAddr, path::Path, time::Duration};

use super::super::{
    driver::{self, Work},
    processes::{Apart, Sidecar, free_address},
    report::{Report, Samples},
};

/// What is offered too much of, and over how many connections.
struct Overload {
    what: &'static str,
    work: Work,
    connections: usize,
}

/// In MB: what an idle sidecar takes, `admission.max_inflight_bytes`, `consumer.memory_bytes`, the buffers of
/// `http.max_connections`, and what is remembered of tasks to recognise them.
const ALL_BOUNDS: f64 = 10.0 + 32.0 + 24.0 + 1024.0 * 0.032 + 8.0;

const OVERLOADS: [Overload; 3] = [
    Overload { what: "150 % offered", work: Work::Set, connections: 1000 },
    Overload { what: "150 % offered by 2,000", work: Work::Set, connections: 2000 },
    Overload { what: "150 % of 16 KiB offered", work: Work::Fields(16), connections: 1000 },
];

const OVERLOADED: Duration = Duration::from_secs(4);

/// How many tasks it takes per second at most, and the first number that was not used for that. A closed loop does not
/// find out: its driver and the sidecar wait for each other.
async fn peak(address: SocketAddr, connections: usize, work: Work) -> anyhow::Result<(f64, u32)> {
    const TIME: Duration = Duration::from_secs(2);
    let (mut peak, mut offered, mut first) = (0.0_f64, 2_000_u32, 0);
    loop {
        let ran = driver::open_loop(address, connections, work, offered, first, TIME).await?;
        first += offered * TIME.as_secs() as u32;
        peak = peak.max(ran.rate());
        if ran.rate() < 0.9 * f64::from(offered) {
            return Ok((peak, first));
        }
        offered += offered / 2;
    }
}

/// The sidecar has a processor of its own: else whoever offers more takes away what there is to offer it to.
pub async fn measure(scratch: &Path, rounds: usize, report: &mut Report) -> anyhow::Result<()> {
    let apart = Apart::try_new()?;
    let runner = apart.runner();
    let nobody = free_address()?;
    for Overload { what, work, connections } in OVERLOADS {
        let [mut goodput, mut refused, mut share, mut longest, mut memory, mut cores] =
            [(); 6].map(|()| Samples::default());
        for _ in 0..rounds {
            let data = scratch.join("overload");
            let start = || Sidecar::serving_by(&runner, &data, nobody, &["--journal-max-bytes=4GiB"]);
            let sidecar = start().await?;
            let (peak, first) = peak(sidecar.address, connections, work).await?;
            sidecar.process.stop();
            std::fs::remove_dir_all(&data)?;
            // With an empty journal: a full one refuses for another reason.
            let sidecar = start().await?;
            let cpu = sidecar.process.cpu();
            let ran =
                driver::open_loop(sidecar.address, connections, work, (peak * 1.5) as u32, first, OVERLOADED).await?;
            cores.push((sidecar.process.cpu() - cpu).as_secs_f64() / ran.elapsed.as_secs_f64());
            goodput.push(ran.rate() / peak);
            refused.push(ran.refused.value_at_quantile(0.99) as f64 / 1e3);
            share.push(ran.failed as f64 / (ran.failed as f64 + ran.accepted.len() as f64));
            longest.push(ran.waited.max() as f64 / 1e3);
            memory.push(sidecar.process.kilobytes("VmHWM") as f64 / 1024.0);
            sidecar.process.stop();
            std::fs::remove_dir_all(&data)?;
        }
        let taken = goodput.median() >= 0.9;
        report.goal(&format!("{what}: taken, of the peak"), &goodput.show(2), "at least 0.90", taken);
        report.note(&format!("{what}: share that was refused"), &share.show(2));
        // Where nothing was refused there is nothing to say of it.
        if share.median() > 0.0 {
            let soon = refused.median() <= 5.0;
            report.goal(&format!("{what}: p99 of a 503, ms"), &refused.show(2), "at most 5", soon);
        }
        report.note(&format!("{what}: longest wait for a 202, ms"), &longest.show(0));
        report.note(&format!("{what}: of the sidecar's processor"), &cores.show(2));
        let (bounded, goal) = (memory.median() <= ALL_BOUNDS, format!("at most {ALL_BOUNDS:.0}"));
        report.gate(&format!("{what}: most memory, MB"), &memory.show(1), &goal, bounded);
    }
    Ok(())
}
