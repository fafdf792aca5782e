//! Element-by-element dependencies: which element waits for which, computed from the axes and never stored.
//!
//! Both groups are mixed-radix spaces. An axis that both have is *shared*; one that only the upstream has is fan-in, one that
//! only the downstream has is fan-out. Elements with the same shared coordinates form a *cell*: every downstream element of a
//! cell waits for every upstream element of it, so one counter a cell is all that is ever kept.

use crate::spec::Axis;

/// Most axes of one projection.
pub const AXES_MAX: usize = 64;

/// Upstream elements that the downstream element waits for, in order of the axes.
pub fn upstream_of(axes: &[Axis], downstream_index: u32) -> Vec<u32> {
    other_side(axes, downstream_index, |axis| (axis.downstream_stride, axis.upstream_stride))
}

/// Downstream elements that wait for the upstream element, in order of the axes.
pub fn downstream_of(axes: &[Axis], upstream_index: u32) -> Vec<u32> {
    other_side(axes, upstream_index, |axis| (axis.upstream_stride, axis.downstream_stride))
}

/// Fixes the coordinates that `index` has on this side and walks all others.
fn other_side(axes: &[Axis], index: u32, strides: impl Fn(&Axis) -> (u32, u32)) -> Vec<u32> {
    let mut found = vec![0u32];
    for axis in axes {
        let (here, there) = strides(axis);
        if here == 0 {
            found = found
                .iter()
                .flat_map(|base| (0..axis.length).map(move |step| base.wrapping_add(step.wrapping_mul(there))))
                .collect();
        } else if axis.length > 0 {
            let coordinate = (index / here) % axis.length;
            found.iter_mut().for_each(|base| *base = base.wrapping_add(coordinate.wrapping_mul(there)));
        }
    }
    found
}

/// A checked projection, prepared for ranges.
#[derive(Clone, Debug)]
pub(super) struct Projection {
    axes: Vec<Axis>,
    /// Upstream elements of one cell.
    pub(super) fan_in: u32,
    /// Length, downstream stride: fan-out axes that are walked one by one, after `block` was taken out.
    outer: Vec<(u32, u32)>,
    /// Downstream elements of a cell that lie side by side.
    block: u32,
    /// Both spaces are the same: ranges map to themselves.
    identity: bool,
}

impl Projection {
    /// Checks that the axes span exactly both groups.
    ///
    /// # Errors
    /// One sentence saying what does not fit.
    pub(super) fn new(axes: &[Axis], upstream_length: u32, downstream_length: u32) -> Result<Self, String> {
        if axes.len() > AXES_MAX {
            return Err(format!("it has {} axes and the limit is {AXES_MAX}", axes.len()));
        }
        if upstream_length == 0 || downstream_length == 0 {
            return Self::empty(axes, upstream_length, downstream_length);
        }
        if axes.iter().any(|axis| axis.upstream_stride == 0 && axis.downstream_stride == 0 && axis.length != 1) {
            return Err("it has an axis that moves neither index".to_owned());
        }
        spans(axes.iter().map(|axis| (axis.length, axis.upstream_stride)), upstream_length)
            .map_err(|what| format!("upstream {what}"))?;
        spans(axes.iter().map(|axis| (axis.length, axis.downstream_stride)), downstream_length)
            .map_err(|what| format!("downstream {what}"))?;
        let of = |keep: fn(&Axis) -> bool| axes.iter().filter(move |axis| keep(axis) && axis.length != 1);
        let fan_in = of(|axis| axis.downstream_stride == 0).map(|axis| axis.length).product();
        let mut outer: Vec<(u32, u32)> =
            of(|axis| axis.upstream_stride == 0).map(|axis| (axis.length, axis.downstream_stride)).collect();
        outer.sort_by_key(|(_, stride)| *stride);
        let mut block = 1;
        while let Some(&(length, stride)) = outer.first()
            && stride == block
            && length > 0
        {
            block *= length;
            outer.remove(0);
        }
        let identity = upstream_length == downstream_length
            && axes.iter().all(|axis| axis.length == 1 || axis.upstream_stride == axis.downstream_stride);
        Ok(Projection { axes: axes.to_vec(), fan_in, outer, block, identity })
    }

    /// A projection from or to a group without elements: an axis without steps makes strides 0 wherever it is, so only the
    /// other group's axes can be checked. Nothing waits for anything.
    fn empty(axes: &[Axis], upstream_length: u32, downstream_length: u32) -> Result<Self, String> {
        if axes.iter().all(|axis| axis.length > 0) {
            return Err("one of the groups has no element but every axis has some".to_owned());
        }
        if upstream_length > 0 {
            spans(axes.iter().map(|axis| (axis.length, axis.upstream_stride)), upstream_length)
                .map_err(|what| format!("upstream {what}"))?;
        }
        if downstream_length > 0 {
            spans(axes.iter().map(|axis| (axis.length, axis.downstream_stride)), downstream_length)
                .map_err(|what| format!("downstream {what}"))?;
        }
        Ok(Projection { axes: axes.to_vec(), fan_in: 0, outer: Vec::new(), block: 0, identity: false })
    }

    /// True when an upstream range makes the same downstream range.
    pub(super) fn is_identity(&self) -> bool {
        self.identity
    }

    /// The cell of an upstream element: its smallest downstream element.
    pub(super) fn cell(&self, upstream_index: u32) -> u32 {
        self.axes
            .iter()
            .filter(|axis| axis.upstream_stride > 0 && axis.length > 0)
            .map(|axis| (upstream_index / axis.upstream_stride) % axis.length * axis.downstream_stride)
            .sum()
    }

    /// Downstream elements of a cell as ranges `first..end`.
    pub(super) fn downstream_ranges(&self, cell: u32) -> Vec<(u32, u32)> {
        let mut firsts = vec![cell];
        for &(length, stride) in &self.outer {
            firsts = firsts.iter().flat_map(|first| (0..length).map(move |step| first + step * stride)).collect();
        }
        firsts.into_iter().map(|first| (first, first + self.block)).collect()
    }

    /// Upstream elements of a downstream element.
    pub(super) fn upstream_of(&self, downstream_index: u32) -> Vec<u32> {
        upstream_of(&self.axes, downstream_index)
    }
}

/// Whether axes with these (length, stride) count through `0..length` exactly once.
fn spans(axes: impl Iterator<Item = (u32, u32)>, length: u32) -> Result<(), String> {
    let mut moving: Vec<(u32, u32)> = axes.filter(|(steps, stride)| *stride > 0 && *steps != 1).collect();
    if moving.iter().any(|(steps, _)| *steps == 0) {
        return if length == 0 { Ok(()) } else { Err(format!("axes have no element but the group has {length}")) };
    }
    moving.sort_by_key(|(_, stride)| *stride);
    let mut next = 1u64;
    for (steps, stride) in moving {
        if u64::from(stride) != next {
            return Err(format!("strides leave gaps or overlap: {stride} where {next} was expected"));
        }
        next = next.saturating_mul(u64::from(steps));
    }
    if next == u64::from(length) { Ok(()) } else { Err(format!("axes have {next} elements but the group has {length}")) }
}
