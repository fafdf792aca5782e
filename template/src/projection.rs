//! Element-wise dependencies: which upstream elements one downstream element reads.

use scalable_proto::v1::Projection;

use crate::space::TASKS_MAX;

/// Most axes of a projection: those of both its groups.
const AXES_MAX: usize = 2 * crate::space::PARAMETERS_MAX;

/// Why a projection was refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProjectionError {
    /// More axes than two groups can have.
    #[error("a projection has {0} axes, at most 512 are possible")]
    TooManyAxes(usize),
    /// An axis of length 0, or one that moves neither index.
    #[error("axis {0} of a projection has length 0 or moves neither index")]
    DeadAxis(usize),
    /// An element would read, or be, more than a group can hold.
    #[error("a projection reaches beyond {TASKS_MAX} elements")]
    TooLarge,
}

/// A checked projection.
#[derive(Clone, Debug)]
pub struct Axes {
    /// (length, upstream stride, downstream stride) of axes both groups have.
    shared: Vec<(u32, u32, u32)>,
    /// (length, upstream stride) of axes only the upstream group has, slowest first.
    fan_in: Vec<(u32, u32)>,
    count: u32,
}

impl Axes {
    /// Checks a projection from the wire.
    ///
    /// # Errors
    /// See [`ProjectionError`].
    pub fn new(projection: &Projection) -> Result<Axes, ProjectionError> {
        if projection.axes.len() > AXES_MAX {
            return Err(ProjectionError::TooManyAxes(projection.axes.len()));
        }
        let (mut shared, mut fan_in) = (Vec::new(), Vec::new());
        let (mut up_max, mut down_max, mut count) = (0u64, 0u64, 1u64);
        for (at, axis) in projection.axes.iter().enumerate() {
            if axis.length == 0 || (axis.length > 1 && axis.upstream_stride == 0 && axis.downstream_stride == 0) {
                return Err(ProjectionError::DeadAxis(at));
            }
            let steps = u64::from(axis.length - 1);
            up_max = up_max.saturating_add(steps * u64::from(axis.upstream_stride));
            down_max = down_max.saturating_add(steps * u64::from(axis.downstream_stride));
            match (axis.upstream_stride, axis.downstream_stride) {
                // Fan-out: the upstream index does not depend on it.
                (0, _) => {}
                (up, 0) => {
                    fan_in.push((axis.length, up));
                    count = count.saturating_mul(u64::from(axis.length));
                }
                (up, down) => shared.push((axis.length, up, down)),
            }
        }
        let bound = u64::from(TASKS_MAX);
        let count = u32::try_from(count).ok().filter(|count| *count <= TASKS_MAX).ok_or(ProjectionError::TooLarge)?;
        if up_max >= bound || down_max >= bound {
            return Err(ProjectionError::TooLarge);
        }
        fan_in.sort_unstable_by_key(|&(_, up)| std::cmp::Reverse(up));
        Ok(Axes { shared, fan_in, count })
    }

    /// How many upstream elements each downstream element reads, at least 1.
    pub fn count(&self) -> u32 {
        self.count
    }

    /// The upstream elements of one downstream element, in index order, without collecting them.
    pub fn upstream(&self, downstream: u32) -> impl Iterator<Item = u32> + '_ {
        let base: u32 = self.shared.iter().map(|&(length, up, down)| (downstream / down) % length * up).sum();
        (0..self.count).map(move |nth| {
            let mut rest = nth;
            let offset: u32 = self
                .fan_in
                .iter()
                .rev()
                .map(|&(length, up)| {
                    let step = rest % length;
                    rest /= length;
                    step * up
                })
                .sum();
            base + offset
        })
    }
}

/// The upstream elements that `downstream` reads, in index order.
///
/// # Errors
/// A projection that is not one; see [`Axes::new`].
pub fn projection_upstream(projection: &Projection, downstream: u32) -> Result<Vec<u32>, ProjectionError> {
    Ok(Axes::new(projection)?.upstream(downstream).collect())
}
