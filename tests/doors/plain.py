"""Plain PyTorch for featpipe: nothing folded, no channels last; and a coarse one."""

from featpipe.backbones.runtime import Runtime


class Plain(Runtime):
    """Plain PyTorch."""

    name = "plain"
    exact = True

    def run(self, images, captures):
        kept = {}
        for one in captures:

            def keep(module, inputs, output, one=one):
                kept[one.layer] = one.read(inputs, output)

            self.network.get_submodule(one.module).register_forward_hook(keep)
        self.network(self.preprocessing.normalise(images.to(self.device)))
        for module in self.network.modules():
            module._forward_hooks.clear()
        return {layer: values.float().cpu().numpy() for layer, values in kept.items()}


class Coarse(Plain):
    """Two digits of each number."""

    name = "coarse"
    exact = False

    def run(self, images, captures):
        return {layer: values.round(2) for layer, values in super().run(images, captures).items()}
