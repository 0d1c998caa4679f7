//! placeholder
use crate::Measure;
use anyhow::Result;
pub fn run(_m: &Measure) -> Result<()> { anyhow::bail!("not yet") }
