//! What a server's processes take of the machine (proc(5)).

use super::Server;

impl Server {
    /// User and system time of the server's processes so far.
    pub fn cpu_seconds(&self) -> f64 {
        let ticks = self.processes().iter().map(|id| stat(*id).map_or(0, |stat| stat.ticks)).sum::<u64>();
        ticks as f64 / rustix::param::clock_ticks_per_second() as f64
    }

    /// Lets `peak_mib` begin anew.
    pub fn reset_peak(&self) {
        for id in self.processes() {
            // One that has ended meanwhile has no peak.
            let _ = std::fs::write(format!("/proc/{id}/clear_refs"), "5");
        }
    }

    /// The most resident memory at any time. Pages that processes share are counted in each.
    pub fn peak_mib(&self) -> f64 {
        self.memory_mib("VmHWM:")
    }

    pub fn resident_mib(&self) -> f64 {
        self.memory_mib("VmRSS:")
    }

    fn memory_mib(&self, field: &str) -> f64 {
        let kib: u64 = self.processes().into_iter().map(|id| memory_kib(id, field)).sum();
        kib as f64 / 1024.0
    }

    /// The process that was started, and its children (nginx's workers).
    fn processes(&self) -> Vec<u32> {
        let all = std::fs::read_dir("/proc").unwrap();
        let ids = all.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<u32>().ok());
        let ours =
            |id: &u32| *id == self.process_id || stat(*id).is_some_and(|s| s.parent == self.process_id);
        ids.filter(ours).collect()
    }
}

fn memory_kib(process_id: u32, field: &str) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{process_id}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix(field));
    line.and_then(|line| line.trim().trim_end_matches(" kB").parse().ok()).unwrap_or(0)
}

struct Stat {
    parent: u32,
    ticks: u64,
}

fn stat(process_id: u32) -> Option<Stat> {
    let text = std::fs::read_to_string(format!("/proc/{process_id}/stat")).ok()?;
    // The second field, a name in parentheses, may hold anything; the third comes after the last one.
    let fields: Vec<&str> = text.rsplit_once(") ")?.1.split(' ').collect();
    let number = |field: usize| fields.get(field - 3)?.parse::<u64>().ok();
    Some(Stat { parent: u32::try_from(number(4)?).ok()?, ticks: number(14)? + number(15)? })
}
