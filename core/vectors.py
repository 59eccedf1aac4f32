"""Defines the vectors of a teacher at one revision, with which it is evaluated and from which students learn."""

from dataclasses import dataclass, replace

from torch import Tensor

from .histories import Histories


@dataclass(frozen=True)
class TeacherVectors:
    """Holds all vectors of a teacher at one revision of its prompt.

    Attributes:
        user, item: Final vectors, [num_users, final_dim] and [num_items, final_dim].
        modal_user, modal_item: M_m^U [num_users, d] and M_m^I [num_items, d] by modality; in an artifact, and where labels are made, those
            whose dot products are the scores that the teacher compares (docs/method.md 3).
        prompt_user, prompt_item: Soft prompts p_U [num_users, d] and p_I [num_items, d]; None without a prompt.
        reduced: z_m by modality, [num_items, d].
        path_user, path_item: The collaborative vectors e_U and e_I, which BPR trains with `teacher.fusion=concat`; None where BPR trains
            the final vectors.
        histories: Scores from the users' histories, which are added to the final vectors' dot products.
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
    histories: Histories = ()

    def with_reduced(self, reduced: dict[str, Tensor]) -> "TeacherVectors":
        """Returns these vectors with `reduced` in place of z_m: rows [n, d] by modality."""
        return replace(self, reduced=reduced)

    def detach(self) -> "TeacherVectors":
        """Returns the vectors without their graph of gradients, and without `path_user` and `path_item`, which only a loss reads."""
        prompts = [None if p is None else p.detach() for p in (self.prompt_user, self.prompt_item)]
        modal = [{m: x.detach() for m, x in side.items()} for side in (self.modal_user, self.modal_item, self.reduced)]
        final = self.user.detach(), self.item.detach()
        return TeacherVectors(*final, modal[0], modal[1], prompts[0], prompts[1], modal[2], histories=self.histories)
