from torch.library import CustomOpDef


def register_own_gradient(op: CustomOpDef) -> None:
    """Makes an operator differentiable whose first output is a sum, the last its gradient to the first input.

    The loss and its gradient share all expensive work: one pass computes both, and the backward pass only
    scales. The gradient is rounded once, to the input's precision.
    """

    def setup_context(ctx, inputs, output) -> None:
        ctx.dtype, ctx.others = inputs[0].dtype, [None] * (len(inputs) - 1)
        ctx.save_for_backward(output[-1])

    def backward(ctx, grad_sum, *_):
        (grad,) = ctx.saved_tensors
        return (grad * grad_sum).to(ctx.dtype), *ctx.others

    op.register_autograd(backward, setup_context=setup_context)
