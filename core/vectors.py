"""All vectors of a teacher at one revision: what it is evaluated with and what students learn from."""

from dataclasses import dataclass, replace

from torch import Tensor


@dataclass(frozen=True)
class TeacherVectors:
    """What the teacher knows at one revision of its prompt.

    Attributes:
        user, item: Final vectors [num_users, d], [num_items, d].
        modal_user, modal_item: M_m^U and M_m^I by modality.
        prompt_user, prompt_item: Soft prompts p_U and p_I; None without a prompt.
        reduced: z_m by modality [num_items, d].
        path_user, path_item: What BPR trains in place of the final vectors: the collaborative ones, where these are but a part of them.
    """

    user: Tensor
    item: Tensor
    modal_user: dict[str, Tensor]
    modal_item: dict[str, Tensor]
    prompt_user: Tensor | None
    prompt_item: Tensor | None
    reduced: dict[str, Tensor]
    path_user: Tensor | None = None
    path_item: Tensor | None = None

    def with_reduced(self, reduced: dict[str, Tensor]) -> "TeacherVectors":
        """The same vectors with other rows of z_m."""
        return replace(self, reduced=reduced)

    def detach(self) -> "TeacherVectors":
        """The same vectors without their graph of gradients."""
        prompts = [None if p is None else p.detach() for p in (self.prompt_user, self.prompt_item)]
        modal = [{m: x.detach() for m, x in side.items()} for side in (self.modal_user, self.modal_item, self.reduced)]
        return TeacherVectors(self.user.detach(), self.item.detach(), modal[0], modal[1], prompts[0], prompts[1], modal[2])
