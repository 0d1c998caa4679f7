//! Device profiles and the roofline: [`Work`] to seconds.
//!
//! Peaks and bandwidth per die: CANN platform configuration (cores, clock, L2, HBM) and the profiles that Ascend's
//! msmodeling publishes; 910B2's peaks are 910B1's scaled by clock. Efficiencies and static costs are msmodeling's
//! uncalibrated defaults. Nothing here was measured by us on an NPU.

use super::{OpClass, Work};
use crate::{Nanos, nanos};
use serde::{Deserialize, Serialize};

/// One device model.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Profile {
    /// Short name: `910B1`, `910B2`, `910B3`, `910B4`, `910C`.
    pub name: &'static str,
    /// What `aclrtGetSocName` answers on it.
    pub soc_name: &'static str,
    /// Cube cores; there are twice as many vector cores.
    pub cube_cores: u32,
    /// Core clock, MHz.
    pub clock_mhz: u32,
    /// L2 cache, bytes.
    pub l2_bytes: u64,
    /// HBM capacity, bytes.
    pub hbm_capacity_bytes: u64,
    /// Peak bfloat16 FLOP/s of the cube cores.
    pub cube_flops_per_s: f64,
    /// Peak float16 FLOP/s of the vector cores.
    pub vector_flops_per_s: f64,
    /// Peak HBM bytes/s.
    pub hbm_bytes_per_s: f64,
    /// Bytes/s of the host link one way. A judgement (what a PCIe 4.0 ×16 link sustains); no source gives Ascend's.
    pub host_link_bytes_per_s: f64,
    /// Bytes/s that a die sends to all other dies of its machine together: the HCCS mesh of an A2 server as msmodeling publishes
    /// it. Two dies are given all of it, which is a judgement in their favour.
    pub peer_link_bytes_per_s: f64,
    /// Reachable part of the peak FLOP/s.
    pub compute_efficiency: f64,
    /// Reachable part of the peak bandwidth.
    pub memory_efficiency: f64,
    /// Fixed cost of a cube operator, seconds.
    pub static_matmul_s: f64,
    /// Fixed cost of a vector operator or copy, seconds.
    pub static_vector_s: f64,
    /// Fixed cost of a collective, seconds.
    pub static_communication_s: f64,
}

/// Time that an operator needs of each resource at full rate, and alone.
#[derive(Clone, Copy, Debug, PartialEq, Default, Serialize, Deserialize)]
pub struct Demand {
    /// Seconds of the cube cores.
    pub cube: f64,
    /// Seconds of the vector cores.
    pub vector: f64,
    /// Seconds of HBM bandwidth.
    pub hbm: f64,
    /// Fixed part, seconds: launch, and the host link for transfers.
    pub static_s: f64,
    /// Seconds alone on the device: `max(cube, vector, hbm) + static_s`.
    pub solo_s: f64,
}

const GIB: u64 = 1 << 30;
const MIB: u64 = 1 << 20;

const fn profile(
    name: &'static str,
    soc_name: &'static str,
    (cube_cores, clock_mhz): (u32, u32),
    (l2_mib, hbm_gib): (u64, u64),
    (cube_tflops, vector_tflops, hbm_tb_per_s): (f64, f64, f64),
) -> Profile {
    Profile {
        name,
        soc_name,
        cube_cores,
        clock_mhz,
        l2_bytes: l2_mib * MIB,
        hbm_capacity_bytes: hbm_gib * GIB,
        cube_flops_per_s: cube_tflops * 1e12,
        vector_flops_per_s: vector_tflops * 1e12,
        hbm_bytes_per_s: hbm_tb_per_s * 1e12,
        host_link_bytes_per_s: 25e9,
        peer_link_bytes_per_s: 196e9 * 0.7,
        compute_efficiency: 0.7,
        memory_efficiency: 0.6,
        static_matmul_s: 5e-6,
        static_vector_s: 2e-6,
        static_communication_s: 10e-6,
    }
}

impl Profile {
    /// Ascend 910B1.
    pub const A910B1: Self = profile("910B1", "Ascend910B1", (24, 1850), (192, 64), (353.9, 22.0, 1.6));
    /// Ascend 910B2.
    pub const A910B2: Self = profile("910B2", "Ascend910B2", (24, 1800), (192, 64), (344.3, 22.0, 1.6));
    /// Ascend 910B3.
    pub const A910B3: Self = profile("910B3", "Ascend910B3", (20, 1800), (192, 64), (294.9, 18.0, 1.6));
    /// Ascend 910B4.
    pub const A910B4: Self = profile("910B4", "Ascend910B4", (20, 1500), (96, 32), (245.8, 16.0, 0.8));
    /// One die of an Ascend 910C.
    pub const A910C: Self = profile("910C", "Ascend910_9391", (24, 1850), (192, 64), (353.9, 22.0, 1.6));
    /// Every profile.
    pub const ALL: [Self; 5] = [Self::A910B1, Self::A910B2, Self::A910B3, Self::A910B4, Self::A910C];

    /// The profile of an SoC, by `aclrtGetSocName`'s answer or the short name; both 910C dies share one.
    pub fn by_soc_name(soc_name: &str) -> Option<Self> {
        let soc_name = if soc_name == "Ascend910_9392" { "Ascend910_9391" } else { soc_name };
        Self::ALL.into_iter().find(|p| p.soc_name == soc_name || p.name == soc_name)
    }

    /// Seconds that `work` needs of each resource.
    pub fn demand(&self, work: &Work) -> Demand {
        let cube = work.cube_flops / (self.cube_flops_per_s * self.compute_efficiency);
        let vector = work.vector_flops / (self.vector_flops_per_s * self.compute_efficiency);
        let hbm = work.hbm_bytes / (self.hbm_bytes_per_s * self.memory_efficiency);
        let static_s = match work.class {
            OpClass::Matmul => self.static_matmul_s,
            OpClass::Vector => self.static_vector_s,
            OpClass::Communication => self.static_communication_s,
            OpClass::Link { opens } => {
                let open = if opens { self.static_communication_s } else { 0.0 };
                open + work.hbm_bytes / self.peer_link_bytes_per_s
            }
            OpClass::Copy => self.static_vector_s + work.hbm_bytes / self.host_link_bytes_per_s,
        };
        Demand { cube, vector, hbm, static_s, solo_s: cube.max(vector).max(hbm) + static_s }
    }

    /// Time that `work` takes alone.
    pub fn solo(&self, work: &Work) -> Nanos {
        nanos(self.demand(work).solo_s)
    }
}
